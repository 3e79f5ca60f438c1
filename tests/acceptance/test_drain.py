"""Stopping, replacing and killing a service under load: nothing twice, nothing lost."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

from acceptance.apps.events import Step
from acceptance.conftest import Place, long_on
from acceptance.running import (
    SCALE,
    STEPS,
    Load,
    Service,
    eventually,
    forever,
    held,
    some_more,
    steps,
)
from processes import is_alive

Serve = Callable[..., Service]


def pause(shortest: float, longest: float) -> None:
    """Let work go on until a moment that nobody chose."""
    time.sleep(random.uniform(shortest, longest))


def all_are_new(service: Service, old: set[int]) -> bool:
    """Tell whether there are two processes, and none of ``old``."""
    new = service.processes()
    return len(new) == 2 and old.isdisjoint(new)


def has_begun(service: Service, step: Step, times: int) -> bool:
    """Tell whether handlers began with ``step`` so often."""
    return service.ledger.executions(step.event_id).total() == times


def all_ended(pids: Iterable[int]) -> bool:
    """Tell whether none of these processes lives."""
    return not any(is_alive(pid) for pid in pids)


def is_gone(service: Service, pid: int) -> bool:
    """Tell whether the service runs without this process."""
    return pid not in service.processes()


def check_all_done_once(service: Service, load: Load) -> None:
    """What was published was executed once, took effect once, and in the order of its key."""
    eventually(lambda: service.ledger.has(load.confirmed, *STEPS), "all is done")
    assert service.drain() == 0
    assert service.ledger.twice("begin") == {}
    assert len(service.ledger.entries("begin")) == len(service.ledger.entries("effect"))
    assert len(service.ledger.entries("begin")) == 2 * len(load.confirmed)
    assert service.ledger.disorder() == {}
    assert service.ledger.overlaps() == []


@contextmanager
def under_load(service: Service, load: Load) -> Iterator[None]:
    """Start it, and publish to it while the block runs; in the end all is done once."""
    service.start_ready(*SCALE)
    with load.in_background(forever(keys=20, seconds=0.02)):
        yield
    check_all_done_once(service, load)


def test_a_drain_at_any_moment_executes_nothing_twice_and_loses_nothing(
    place: Place, serve: Serve, load: Load
) -> None:
    service = serve(place, "steps")
    with under_load(service, load):
        for _ in range(3):
            some_more(service)
            pause(0, 0.5)
            assert service.drain() == 0
            service.start_ready(*SCALE)


@long_on("embedded")
def test_a_rolling_replacement_executes_nothing_twice_and_loses_nothing(
    place: Place, serve: Serve, load: Load
) -> None:
    service = serve(place, "steps")
    with under_load(service, load):
        for _ in range(2):
            some_more(service)
            old = set(service.processes())
            service.signal(signal.SIGHUP)
            eventually(partial(all_are_new, service, old), "every process is a new one")
        some_more(service)


def has_taken(service: Service) -> bool:
    """Whether a process of ``service`` took a shard since it was started."""
    return " takes shard" in service.log


@long_on("servers")
def test_a_service_that_hands_over_to_another_one_executes_nothing_twice(
    place: Place, serve: Serve, load: Load
) -> None:
    one, other = serve(place, "steps", folder="one"), serve(place, "steps", folder="other")
    other.use_ledger(one.ledger)
    one.start_ready(*SCALE)

    with load.in_background(forever(keys=20, seconds=0.02)):
        for old, new in ((one, other), (other, one)):
            some_more(one)
            new.start_ready(*SCALE)
            eventually(partial(has_taken, new), "it has its share, of what the other gave")
            pause(0, 0.5)
            assert old.drain() == 0
        some_more(one)

    check_all_done_once(one, load)


def test_what_outlasts_the_drain_runs_again_and_nothing_else_does(
    place: Place, serve: Serve, load: Load
) -> None:
    service = serve(place, "steps", claim_ttl=2)
    service.start_ready(*SCALE, "--drain-timeout", "0.5")
    quick = load.publish(steps(keys=10, each=5))
    eventually(lambda: service.ledger.has(quick, *STEPS), "what is quick is done")

    slow = held("slow")
    load.publish([slow, *steps(keys=1, each=1, begin=5)])
    eventually(lambda: service.ledger.executions(slow.event_id), "the slow one runs")
    service.signal(signal.SIGTERM)
    assert service.exit_code() == 75

    service.release()
    service.start_ready(*SCALE)
    eventually(lambda: service.ledger.has(load.confirmed, *STEPS), "all is done")
    assert service.drain() == 0
    assert {place[1] for place in service.ledger.twice("begin")} == {slow.event_id}
    assert service.ledger.twice("effect") == {}
    assert service.ledger.disorder() == {}


@long_on("servers")
def test_what_outlasts_one_drain_after_another_is_no_poison(
    place: Place, serve: Serve, load: Load
) -> None:
    service = serve(place, "steps", claim_ttl=1)
    slow = held("slow")
    for deployment in range(1, 5):  # one more than the crashes that a message may cause
        service.start_ready(*SCALE, "--drain-timeout", "1")
        if deployment == 1:
            load.publish([slow])
        eventually(partial(has_begun, service, slow, deployment), "the first handler runs")
        service.signal(signal.SIGTERM)
        assert service.exit_code() == 75

    service.release()
    service.start_ready(*SCALE)
    eventually(lambda: service.ledger.has([slow.event_id], *STEPS), "it is done after all")
    assert service.drain() == 0
    assert service.events("SuspectFound") == []
    assert service.events("DeadLettered") == []


def test_a_drain_that_takes_longer_than_heartbeats_keeps_its_connection(
    servers: Place, serve: Serve, load: Load
) -> None:
    service = serve(servers, "steps", heartbeat=1)
    service.start_ready(*SCALE)
    slow = [Step(key=f"slow-{n}", sequence=0, seconds=5.0) for n in range(4)]
    load.publish(slow)
    eventually(lambda: service.ledger.executions(slow[-1].event_id), "they run")

    service.signal(signal.SIGTERM)
    eventually(lambda: service.status().get("state") == "draining", "it drains")
    load.publish(steps(keys=10, each=20))
    assert service.exit_code() == 0
    assert service.events("BrokerLost") == []

    service.start_ready(*SCALE)
    check_all_done_once(service, load)


def test_a_second_signal_stops_at_once_and_loses_nothing(
    servers: Place, serve: Serve, load: Load
) -> None:
    service = serve(servers, "steps", claim_ttl=2)
    service.start_ready(*SCALE)
    slow = held("slow")
    load.publish([slow])
    eventually(lambda: service.ledger.executions(slow.event_id), "it runs")

    service.signal(signal.SIGTERM)
    eventually(lambda: service.status().get("state") == "draining", "it drains")
    service.signal(signal.SIGTERM)
    assert service.exit_code() == 130

    service.release()
    service.start_ready(*SCALE)
    eventually(lambda: service.ledger.has([slow.event_id], *STEPS), "it is done after all")
    assert service.drain() == 0


@long_on("servers")
def test_processes_that_lose_their_supervisor_drain_by_themselves(
    place: Place, serve: Serve, load: Load
) -> None:
    service = serve(place, "steps")
    with under_load(service, load):
        for _ in range(2):
            some_more(service)
            pause(0, 0.5)
            orphans = service.processes()
            assert len(orphans) == 2
            service.signal(signal.SIGKILL)
            assert service.exit_code() == -signal.SIGKILL
            # The next one starts while they drain.
            service.start_ready(*SCALE)
            eventually(partial(all_ended, orphans), "the orphans have ended")
        some_more(service)


def test_a_process_that_is_killed_repeats_only_what_it_was_doing(
    place: Place, serve: Serve, load: Load
) -> None:
    # Any message may be a suspect each time, and is no poison here.
    service = serve(place, "steps", claim_ttl=2, crash_limit=100)
    service.start_ready(*SCALE)

    killed = set()
    with load.in_background(forever(keys=20, seconds=0.02)):
        for _ in range(4):
            some_more(service)
            pause(0, 0.5)
            eventually(lambda: len(service.processes()) == 2, "both processes consume")
            killed.add(victim := random.choice(service.processes()))
            os.kill(victim, signal.SIGKILL)
            eventually(partial(is_gone, service, victim), "it is replaced")
        some_more(service)

    eventually(lambda: service.ledger.has(load.confirmed, *STEPS), "all is done")
    assert service.drain() == 0
    assert service.ledger.disorder() == {}
    again = service.ledger.twice("begin")
    first = {(e.handler, e.id): e.pid for e in reversed(service.ledger.entries("begin"))}
    assert {first[place] for place in again} <= killed
    assert len(again) <= 4 * 2 * 8 * 2
