"""Pause and resume of a running service from another process, under load."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from acceptance.conftest import Place, long_on
from acceptance.running import SCALE, STEPS, Load, Service, eventually, forever, held, steps

Serve = Callable[..., Service]

COUNT, OBSERVE = STEPS
#: What a paused handler leaves in the processes must not stop the shard of the other one.
ROOM = ("--prefetch", "20000")


def ask(service: Service, *arguments: str) -> dict[str, Any]:
    """Run a command that prints JSON."""
    done = service.run(*arguments, "--json")
    assert done.returncode == 0, done
    told: dict[str, Any] = json.loads(done.stdout)
    return told


@contextmanager
def under_load(service: Service, load: Load, keys: int = 12) -> Iterator[None]:
    """Publish while the block runs; in the end nothing is lost, doubled or out of order."""
    with load.in_background(forever(keys)):
        eventually(lambda: len(begun(service)) > 100, "it works")
        yield
    eventually(lambda: service.ledger.has(load.confirmed, *STEPS), "all done")
    assert service.drain() == 0
    assert service.ledger.twice("begin") == {}
    assert service.ledger.disorder() == {}


def begun(service: Service, handler: str = "", since: float = 0.0) -> list[str]:
    """Return the keys of what began since then."""
    return [e.key for e in service.ledger.entries("begin", handler) if e.at > since]


def unsettled(service: Service) -> int:
    """Return how many deliveries the processes hold."""
    return sum(shard["unsettled"] for shard in ask(service, "status")["shards"])


def restart(service: Service, *options: str) -> None:
    assert service.drain() == 0
    service.start_ready(*options)


@long_on("embedded")
def test_a_paused_handler_begins_nothing_until_it_is_resumed(
    place: Place, serve: Serve, load: Load
) -> None:
    service = serve(place, "steps")
    service.start_ready(*SCALE, *ROOM)

    with under_load(service, load):
        told = ask(service, "pause", "--handler", "observe")
        paused_at = time.monotonic()
        assert told["paused"] == {"service": False, "shards": [], "handlers": ["observe"]}
        assert told["waits_for"] == []
        eventually(lambda: len(begun(service, COUNT, paused_at)) > 200, "the other one goes on")

        restart(service, *SCALE, *ROOM)
        restarted_at = time.monotonic()
        eventually(lambda: len(begun(service, COUNT, restarted_at)) > 200, "and after a restart")
        assert begun(service, OBSERVE, paused_at) == []
        status = ask(service, "status")
        assert status["paused"]["handlers"] == ["observe"]
        assert all(member["has_paused"] for member in status["members"])
        eventually(lambda: unsettled(service) > 200, "its messages wait in the processes")

        assert ask(service, "resume", "--handler", "observe")["paused"]["handlers"] == []
        eventually(lambda: len(begun(service, OBSERVE, paused_at)) > 400, "it goes on")


@long_on("servers")
def test_paused_shards_begin_nothing_until_they_are_resumed(
    place: Place, serve: Serve, load: Load
) -> None:
    service = serve(place, "steps")
    service.start_ready(*SCALE)

    with under_load(service, load, keys=40):
        ask(service, "pause", "--shard", "0", "--shard", "1", "--shard", "3")
        paused_at = time.monotonic()
        eventually(lambda: len(begun(service, since=paused_at)) > 200, "the other shard goes on")
        of_shard_2 = {*begun(service, since=paused_at)}

        assert ask(service, "resume")["paused"]["shards"] == []
        assert ask(service, "pause", "--shard", "2")["paused"]["shards"] == [2]
        paused_at = time.monotonic()
        eventually(lambda: len({*begun(service, since=paused_at)}) > 20, "the others go on")
        restart(service, *SCALE)
        restarted_at = time.monotonic()
        eventually(lambda: len(begun(service, since=restarted_at)) > 200, "and after a restart")
        assert of_shard_2.isdisjoint(begun(service, since=paused_at))
        shard = ask(service, "status")["shards"][2]
        assert shard["paused"]
        assert shard["owner"] is not None
        assert not shard["consumed"]

        ask(service, "resume", "--shard", "2")
        eventually(lambda: {*begun(service, since=restarted_at)} >= of_shard_2, "it goes on")


@long_on("servers")
def test_a_paused_service_begins_nothing_in_any_supervisor(
    place: Place, serve: Serve, load: Load
) -> None:
    service, other = serve(place, "steps"), serve(place, "steps", "other")
    other.use_ledger(service.ledger)
    for each in (service, other):
        each.start_ready(*SCALE)

    with under_load(service, load):
        told = ask(other, "pause")
        paused_at = time.monotonic()
        assert told["members"] == 2
        assert told["paused"]["service"]
        before = len(load.confirmed)
        eventually(lambda: len(load.confirmed) > before + 200, "publishers go on")
        restart(service, *SCALE)
        assert begun(service, since=paused_at) == []

        ask(service, "resume")
        eventually(lambda: len(begun(service, since=paused_at)) > 400, "it goes on")
        assert other.drain() == 0


@long_on("servers")
def test_a_change_of_the_shards_waits_for_a_paused_one_and_says_so(
    place: Place, serve: Serve, load: Load
) -> None:
    service = serve(place, "steps")
    service.start_ready(*SCALE)

    def drained() -> bool:
        reshard = ask(service, "status")["reshard"]
        return bool(reshard) and reshard["drained"] == 3

    with under_load(service, load, keys=40):
        ask(service, "pause", "--shard", "2")
        ask(service, "reshard", "--to", "6", "--no-wait")
        eventually(drained, "the others are drained")
        assert ask(service, "status")["reshard"]["waits_for"] == {"shards": [2], "handlers": []}
        assert "waits for shard 2: paused or halted" in service.run("status").stdout

        ask(service, "pause")
        paused_at = time.monotonic()
        assert ask(service, "status")["reshard"]["phase"] == "drain"
        assert begun(service, since=paused_at) == []
        ask(service, "resume")
        eventually(lambda: ask(service, "status")["generation"] == 2, "it goes on")
        resumed_at = time.monotonic()
        eventually(lambda: len(begun(service, since=resumed_at)) > 200, "and the service too")


def test_a_handler_that_runs_is_waited_for(place: Place, serve: Serve, load: Load) -> None:
    service = serve(place, "steps")
    service.start_ready("--shards", "1")
    load.publish([held("key-0")])
    eventually(lambda: len(begun(service, COUNT)) == 1, "it runs")

    late = service.run("pause", "--handler", "count", "--timeout", "0.2")
    assert late.returncode == 1, late
    assert "not carried out within 0.2 s by" in late.stderr
    assert service.ledger.entries("effect", COUNT) == []

    service.release()
    ask(service, "pause", "--handler", "count")
    assert len(service.ledger.entries("effect", COUNT)) == 1
    ask(service, "resume")
    assert service.drain() == 0


@long_on("servers")
def test_a_burst_ends_where_all_that_is_left_is_paused(
    place: Place, serve: Serve, load: Load
) -> None:
    service = serve(place, "steps")
    service.start_ready("--shards", "2")
    assert service.drain() == 0
    done = service.run("pause", "--handler", "observe")
    assert done.returncode == 0
    assert "nobody runs this service now" in done.stdout
    ids = load.publish(steps(keys=5, each=4))

    service.start("--shards", "2", "--burst")
    assert service.exit_code() == 75
    assert "executions that wait for handler observe, paused: 20" in service.log
    assert service.ledger.has(ids, COUNT)
    assert begun(service, OBSERVE) == []

    ask(service, "pause", "--no-wait")
    service.start("--shards", "2", "--burst")
    assert service.exit_code() == 75
    assert "paused: the whole service" in service.log

    ask(service, "resume")
    service.start("--shards", "2", "--burst")
    assert service.exit_code() == 0
    assert service.ledger.has(ids, *STEPS)
    assert service.ledger.twice("begin") == {}
    assert service.ledger.disorder() == {}
