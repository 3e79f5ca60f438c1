"""Handlers that go wrong in every way, each through the real command line."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from acceptance.apps.events import Step
from acceptance.apps.family import Loner
from acceptance.conftest import Place
from acceptance.running import STEPS, Load, Service, eventually, letters, put, steps

Serve = Callable[..., Service]

# Longer than its claim


def test_a_handler_that_outlasts_its_claim_runs_once(
    place: Place, serve: Serve, load: Load
) -> None:
    service = serve(place, "steps", claim_ttl=1)
    service.start_ready("--shards", "4", "--processes", "2")

    load.publish(Step(key=f"key-{k}", sequence=-1, seconds=2.0) for k in range(4))
    load.publish(steps(keys=20, each=5))

    eventually(lambda: service.ledger.has(load.confirmed, *STEPS), "all done")
    assert service.drain() == 0
    assert service.ledger.twice("begin") == {}
    assert service.ledger.disorder() == {}
    assert service.events("SuspectFound") == []


def test_a_copy_that_another_process_gets_meanwhile_waits_and_is_dropped(
    servers: Place, serve: Serve, load: Load
) -> None:
    service = serve(servers, "steps", claim_ttl=1)
    service.start_ready("--shards", "2", "--processes", "2")

    step = Step(key="k", sequence=0, seconds=2.0)
    load.publish([step])
    eventually(lambda: len(service.ledger.entries("begin")) == 1, "it runs")
    for shard in (0, 1):
        put(servers.broker, f"steps.g1.{shard}", step)

    eventually(lambda: service.counter("duplicates") == 4, "both copies were dropped")
    assert service.drain() == 0
    assert service.ledger.has([step.event_id], *STEPS)
    assert service.ledger.twice("begin") == {}


# One that kills its process


def test_a_message_that_kills_its_process_is_found_among_its_neighbours(
    place: Place, serve: Serve, load: Load
) -> None:
    service = serve(place, "poison")
    concurrency = 4
    service.start_ready("--shards", "4", "--processes", "2", "--concurrency", str(concurrency))

    poison = Step(key="key-3", sequence=5, fault="kill")
    innocent = load.publish(steps(keys=12, each=5, seconds=0.02))
    load.publish([poison])
    innocent |= load.publish(steps(keys=12, each=10, begin=6, seconds=0.02))

    eventually(lambda: service.ledger.has(innocent, "poison.handle"), "the innocent are done")
    eventually(lambda: service.counter("dead_lettered") == 1, "the poison is set aside")
    assert service.drain() == 0

    begun = service.ledger.entries("begin")
    crashed = [entry.pid for entry in begun if entry.id == poison.event_id]
    assert len(crashed) == 3
    # Only what ran beside it at its first crash may have run again: from then on it ran alone.
    again = {place[1] for place in service.ledger.twice("begin")} - {poison.event_id}
    first = {entry.id: entry.pid for entry in reversed(begun) if entry.id in again}
    assert set(first.values()) <= {crashed[0]}
    assert len(again) <= 3 * concurrency
    assert service.ledger.disorder() == {}
    (letter,) = service.dead_letters()
    assert letter["id"] == poison.event_id
    assert letter["reason"].startswith("crashed the worker")


def test_several_that_kill_their_process_are_each_set_aside_once(
    servers: Place, serve: Serve, load: Load
) -> None:
    service = serve(servers, "poison")
    service.start_ready("--shards", "4", "--processes", "2", "--concurrency", "8")

    innocent = load.publish(steps(keys=12, each=3, seconds=0.01))
    poison = load.publish(Step(key=f"key-{k}", sequence=3, fault="kill") for k in range(3))
    innocent |= load.publish(steps(keys=12, each=3, begin=4, seconds=0.01))

    eventually(lambda: service.ledger.has(innocent, "poison.handle"), "the innocent are done")
    eventually(lambda: len(letters(servers.broker, "poison.dlq")) >= 3, "the poison is set aside")
    assert service.drain() == 0
    # Beside another one's crash it may have been claimed without having begun.
    assert all(service.ledger.executions()["poison.handle", id_] <= 3 for id_ in poison)
    assert service.ledger.disorder() == {}
    assert sorted(letter.id for letter in letters(servers.broker, "poison.dlq")) == sorted(poison)


# One that never ends


@pytest.mark.parametrize(("fault", "crashes"), [("thread", 3), ("loop", 2)])
def test_a_handler_that_never_ends_costs_its_process_and_nothing_else(
    servers: Place, serve: Serve, load: Load, fault: str, crashes: int
) -> None:
    service = serve(servers, "endless", crash_limit=crashes)
    service.start_ready("--shards", "2", "--processes", "2")

    poison = Step(key="key-0", sequence=-1, fault=fault)
    load.publish([poison])
    innocent = load.publish(steps(keys=10, each=20))

    handlers = {"thread": "endless.thread", "loop": "endless.coroutine"}
    other = ({*handlers.values()} - {handlers[fault]}).pop()
    eventually(lambda: service.ledger.has(innocent, *handlers.values()), "the innocent are done")
    eventually(lambda: service.counter("dead_lettered") == 1, "the poison is set aside")
    assert service.drain() == 0

    assert service.ledger.twice("begin") == {(handlers[fault], poison.event_id): crashes}
    assert service.ledger.has([poison.event_id], other)
    assert service.ledger.disorder() == {}
    assert len(service.events("HandlerStuck")) == crashes
    (letter,) = letters(servers.broker, "endless.dlq")
    assert letter.id == poison.event_id
    assert letter.reason.startswith("crashed the worker")
    assert "1.0 s" in letter.reason


def test_a_handler_that_lets_no_other_thread_run_is_found_by_the_watchdog(
    servers: Place, serve: Serve, load: Load
) -> None:
    service = serve(servers, "endless", watchdog=1, crash_limit=2)
    service.start_ready("--shards", "2", "--processes", "2")

    poison = Step(key="key-0", sequence=-1, fault="interpreter")
    load.publish([poison])
    innocent = load.publish(steps(keys=10, each=5))

    eventually(lambda: service.ledger.has(innocent, "endless.thread"), "the innocent are done")
    eventually(lambda: letters(servers.broker, "endless.dlq"), "the poison is set aside")
    assert service.drain() == 0
    assert service.ledger.executions()["endless.thread", poison.event_id] == 2
    assert service.ledger.disorder() == {}
    (letter,) = letters(servers.broker, "endless.dlq")
    assert letter.reason.startswith("crashed the worker")


def test_a_coroutine_that_never_ends_is_cancelled_at_its_time_limit(
    servers: Place, serve: Serve, load: Load
) -> None:
    service = serve(servers, "endless")
    service.start_ready()

    poison = Step(key="key-0", sequence=-1, fault="coroutine")
    load.publish([poison])
    innocent = load.publish(steps(keys=3, each=3))

    eventually(lambda: service.ledger.has(innocent, "endless.coroutine"), "the innocent are done")
    eventually(lambda: service.counter("dead_lettered") == 1, "the poison is set aside")
    assert service.drain() == 0
    assert service.ledger.twice("begin") == {("endless.coroutine", poison.event_id): 2}
    assert service.ledger.disorder() == {}
    assert service.events("HandlerStuck") == []
    (letter,) = letters(servers.broker, "endless.dlq")
    assert "failed at attempt 2: TimeoutError" in letter.reason


# One that fails for ever


def test_what_fails_for_ever_is_set_aside_with_its_traceback(
    servers: Place, serve: Serve, load: Load
) -> None:
    service = serve(servers, "failing:dead_letter")
    service.start_ready()

    poison = Step(key="key-0", sequence=-1, fault="always")
    load.publish([poison])
    innocent = load.publish(steps(keys=3, each=3))

    handler = "failing-dead_letter.handle"
    eventually(lambda: service.ledger.has(innocent, handler), "the innocent are done")
    assert service.drain() == 0
    assert service.ledger.twice("begin") == {(handler, poison.event_id): 3}
    assert [e.attempt for e in service.ledger.entries("begin") if e.id == poison.event_id] == [
        1,
        2,
        3,
    ]
    assert service.ledger.disorder() == {}
    (letter,) = letters(servers.broker, "failing-dead_letter.dlq")
    assert letter.id == poison.event_id
    assert letter.body == {"key": "key-0", "sequence": -1, "fault": "always", "seconds": 0.0}
    assert letter.reason == "failed at attempt 3: LookupError: no account key-0"
    assert letter.headers["qw-dead-handler"] == "handle"
    assert letter.headers["qw-dead-attempts"] == 3
    assert "failing.py" in letter.headers["qw-dead-detail"]


def test_a_parked_key_waits_with_all_its_successors_in_order(
    servers: Place, serve: Serve, load: Load
) -> None:
    service = serve(servers, "failing:park_key")
    service.start_ready("--shards", "2")

    first = load.publish(steps(keys=3, each=2))
    poison = Step(key="key-0", sequence=2, fault="always")
    load.publish([poison])
    eventually(lambda: service.events("KeyParked"), "the key is parked")
    load.publish(steps(keys=3, each=3, begin=3))

    def parked() -> list[int]:
        return [each.body["sequence"] for each in letters(servers.broker, queue)]

    queue = "failing-park_key.parked"
    handler = "failing-park_key.handle"
    eventually(lambda: len(parked()) == 4, "the key's successors are parked")
    assert parked() == [2, 3, 4, 5]
    assert service.ledger.has(first, handler)
    assert service.drain() == 0
    service.start_ready("--shards", "2")
    load.publish([Step(key="key-0", sequence=6)])
    eventually(lambda: len(parked()) == 5, "the key is still parked after a restart")
    assert service.drain() == 0

    assert parked() == [2, 3, 4, 5, 6]
    assert service.ledger.sequences() == {
        (handler, "key-0"): [0, 1],
        (handler, "key-1"): [0, 1, 3, 4, 5],
        (handler, "key-2"): [0, 1, 3, 4, 5],
    }
    assert letters(servers.broker, "failing-park_key.dlq") == []


def test_a_halted_shard_stands_until_its_service_is_mended(
    servers: Place, serve: Serve, load: Load
) -> None:
    service = serve(servers, "failing:halt_shard")
    service.start_ready("--shards", "2", "--processes", "1")

    poison = Step(key="key-0", sequence=-1, fault="always")
    load.publish([poison])
    eventually(lambda: service.events("ShardHalted"), "the shard is halted")
    ids = load.publish(steps(keys=20, each=5))

    handler = "failing-halt_shard.handle"
    eventually(service.ledger.sequences, "the other shard goes on")
    assert service.drain() == 0
    assert (handler, "key-0") not in service.ledger.sequences()
    (service.folder / "mended").touch()
    service.start_ready("--shards", "2", "--processes", "1")
    eventually(lambda: service.ledger.has(ids, handler), "all is done")

    assert service.drain() == 0
    assert service.ledger.twice("effect") == {}
    assert service.ledger.disorder() == {}
    assert letters(servers.broker, "failing-halt_shard.dlq") == []


def test_everything_failing_at_once_is_an_outage_that_costs_no_message(
    servers: Place, serve: Serve, load: Load
) -> None:
    service = serve(servers, "outage", outage_after=10)
    (service.folder / "down").touch()
    service.start_ready("--shards", "2", "--processes", "1")

    ids = load.publish(steps(keys=30, each=3))
    eventually(lambda: service.ledger.has(ids, "outage.witness"), "the other handler goes on")
    eventually(lambda: service.events("OutageBegan"), "the outage is noticed")
    failed = len(service.ledger.entries("begin", "outage.send"))
    eventually(
        lambda: len(service.ledger.entries("begin", "outage.send")) >= failed + 3, "probes go out"
    )
    assert service.ledger.entries("effect", "outage.send") == []
    eventually(
        lambda: "outage: handler send waits for a probe to succeed" in service.run("status").stdout,
        "status tells of it",
    )
    (service.folder / "down").unlink()

    eventually(lambda: service.ledger.has(ids, "outage.send"), "all is done when it ends")
    assert service.drain() == 0
    assert len(service.events("OutageBegan")) == len(service.events("OutageEnded")) == 1
    assert service.ledger.twice("effect") == {}
    assert service.ledger.disorder() == {}
    assert letters(servers.broker, "outage.dlq") == []


# One that fails three times


def test_what_fails_three_times_runs_four_times_and_its_key_waits(
    place: Place, serve: Serve, load: Load
) -> None:
    service = serve(place, "flaky")
    service.start_ready("--shards", "2")

    flaky = Step(key="key-0", sequence=-1, fault="thrice")
    load.publish([flaky])
    ids = load.publish(steps(keys=10, each=3))

    eventually(lambda: service.ledger.has(ids, "flaky.handle"), "all done")
    assert service.drain() == 0
    assert service.ledger.twice("begin") == {("flaky.handle", flaky.event_id): 4}
    tries = [e for e in service.ledger.entries("begin") if e.id == flaky.event_id]
    assert [e.attempt for e in tries] == [1, 2, 3, 4]
    assert service.ledger.sequences()["flaky.handle", "key-0"] == [-1, 0, 1, 2]
    keys = [e.key for e in service.ledger.entries("effect")]
    assert keys.index("key-0") == 9 * 3, "the other keys did not wait for it"


def test_what_fails_three_times_for_every_message_is_done_at_last(
    place: Place, serve: Serve, load: Load
) -> None:
    service = serve(place, "flaky", outage_after=5)
    service.start_ready("--shards", "2")

    ids = load.publish(Step(key=f"key-{n}", sequence=0, fault="thrice") for n in range(12))

    eventually(lambda: service.ledger.has(ids, "flaky.handle"), "all done")
    assert service.events("OutageBegan")
    assert service.drain() == 0
    assert service.ledger.twice("begin") == {("flaky.handle", id_): 4 for id_ in ids}
    assert service.ledger.twice("effect") == {}


# The end of a burst


def test_a_burst_ends_when_everything_is_done_children_and_retries_too(
    place: Place, serve: Serve, load: Load
) -> None:
    service = serve(place, "family")
    service.start_ready("--shards", "4", "--processes", "2")
    assert service.drain() == 0

    load.publish(Step(key=f"root-{n}-", sequence=0, seconds=0.05) for n in range(10))
    load.publish([Step(key="late-", sequence=0, fault="once")])
    service.start("--shards", "4", "--processes", "2", "--burst")

    assert service.exit_code() == 0
    assert len(service.ledger.entries("effect")) == 11 * (1 + 2 + 4 + 8)
    assert service.ledger.twice("effect") == {}


def test_a_burst_with_a_halted_shard_ends_and_says_that_work_is_left(
    place: Place, serve: Serve, load: Load
) -> None:
    service = serve(place, "failing:halt_shard")
    service.start_ready("--shards", "2", "--processes", "1")
    assert service.drain() == 0

    load.publish([Step(key="key-0", sequence=-1, fault="always")])
    load.publish(steps(keys=20, each=2))
    service.start("--shards", "2", "--processes", "1", "--burst")

    assert service.exit_code() == 75
    assert "their messages are left" in service.log
    assert service.ledger.sequences(), "the other shard was worked off"
    (service.folder / "mended").touch()
    service.start("--shards", "2", "--processes", "1", "--burst")

    assert service.exit_code() == 0
    assert len(service.ledger.entries("effect")) == 41
    assert service.ledger.twice("effect") == {}


def test_a_burst_waits_for_retries_that_an_earlier_life_left_in_the_broker(
    servers: Place, serve: Serve, load: Load
) -> None:
    service = serve(servers, "family")
    service.start_ready("--prefetch", "4")
    loners = [Loner(number=number) for number in range(6)]
    load.publish(loners)
    eventually(lambda: len(service.ledger.entries("begin")) == 6, "all have failed once")
    assert service.drain() == 0

    service.start("--burst")

    assert service.exit_code() == 0
    assert service.ledger.has([loner.event_id for loner in loners], "family.wait")
    assert service.ledger.twice("effect") == {}
