"""Relays whose processes are killed: downstream has each message once, and each key in order."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count, islice

import pytest

from acceptance.apps.events import Step
from acceptance.conftest import Place
from acceptance.running import Load, Service, eventually
from worker.ids import derived_id

Serve = Callable[..., Service]

KEYS, KILLS = 12, 4
PASSED, UNIQUE = "downstream.passed", "downstream.unique"


def twins() -> Iterator[Step]:
    """Yield steps of several keys in turn, each of them twice: under two ids."""
    for sequence in count():
        for key in range(KEYS):
            for _ in range(2):
                yield Step(key=f"key-{key}", sequence=sequence, seconds=0.002)


@pytest.mark.long
def test_a_relay_that_is_killed_under_load_sends_each_message_on_once_and_in_order(
    servers: Place, serve: Serve, load: Load
) -> None:
    downstream = serve(servers, "downstream", folder="downstream")
    downstream.start_ready("--shards", "2")
    relay = serve(servers, "relaying", folder="relay")
    relay.start_ready("--shards", "4", "--processes", "2", "--concurrency", "8")

    stream = twins()
    for _ in range(KILLS):
        load.publish(islice(stream, 2000))  # quicker than they are relayed
        victim = relay.processes()[0]
        os.kill(victim, signal.SIGKILL)
        eventually(partial(is_replaced, relay, victim), "it is replaced")
    load.publish(islice(stream, 200))

    passed_on = {derived_id(source, "relaying.pass_on", 0) for source in load.confirmed}
    eventually(lambda: downstream.ledger.has(passed_on, PASSED), "everything is sent on")
    eventually(lambda: places(downstream, UNIQUE) >= places(downstream, PASSED), "each value too")
    assert relay.counter("suspects") > 0, "the kills hit work under way"
    assert relay.drain() == downstream.drain() == 0

    ledger = downstream.ledger
    assert ledger.twice("begin") == {}, "no id twice"
    assert ledger.disorder() == {}
    assert {e.id for e in ledger.entries("effect", PASSED)} == passed_on, "nothing else"
    for key in range(KEYS):
        once = ledger.sequences()[UNIQUE, f"key-{key}"]
        assert once == list(range(len(once))), "each value once"


def is_replaced(service: Service, victim: int) -> bool:
    """Tell whether both processes run again, and neither is the one that was killed."""
    running = service.processes()
    return len(running) == 2 and victim not in running


def places(service: Service, handler: str) -> set[tuple[str, int]]:
    """Return key and sequence of what a handler took."""
    return {(e.key, e.sequence) for e in service.ledger.entries("effect", handler)}
