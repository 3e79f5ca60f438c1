"""A busy key that is parked and returned while processes are killed: in order, all, and free."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import count

import pytest

from acceptance.apps.events import Step
from acceptance.conftest import Place
from acceptance.running import PATIENCE, Load, Service, eventually

Serve = Callable[..., Service]

HANDLER = "failing-park_key.handle"


def busy_key() -> Iterator[Step]:
    """One key, and another beside it; the third event of the one fails until it is mended."""
    for number in count():
        yield Step(key="busy", sequence=number, fault="always" if number == 3 else "")
        yield Step(key="beside", sequence=number)


#: Where, and who is killed, in ``make test``; ``make chaos`` has the others.
_FIRST = ("servers", "consumers"), ("embedded", "nobody")
_OTHERS = (
    ("servers", "nobody"),
    ("embedded", "consumers"),
    ("servers", "replays"),
    ("embedded", "replays"),
)


def has_more_effects(service: Service, than: int) -> bool:
    return len(service.ledger.entries("effect")) > than


@pytest.mark.parametrize(
    ("place", "victim"),
    [*_FIRST, *(pytest.param(*each, marks=pytest.mark.long) for each in _OTHERS)],
    indirect=["place"],
)
def test_a_busy_key_returns_in_order(place: Place, serve: Serve, load: Load, victim: str) -> None:
    service = serve(place, "failing:park_key")
    service.start_ready("--shards", "2", "--processes", "2")

    def is_free(*, kill: bool) -> bool:
        replay = service.begin("dlq", "replay", "--key", "busy", "--wait", "10")
        if kill and victim == "replays":
            with suppress(subprocess.TimeoutExpired):
                replay.wait(random.uniform(0.3, 1.5))  # any moment will do
            replay.kill()
        elif kill and victim == "consumers":
            for pid in service.processes():
                os.kill(pid, signal.SIGKILL)
        return replay.wait(PATIENCE) == 0

    with load.in_background(busy_key()):
        eventually(lambda: service.counter("parked") > 300, "many are parked")
        (service.folder / "mended").touch()
        for _ in range(2):
            assert is_free(kill=True) or victim != "nobody", "it is set free although it is busy"
            n = len(service.ledger.entries("effect"))
            eventually(partial(has_more_effects, service, n), "work goes on")
    eventually(lambda: is_free(kill=False), "the key is free")

    eventually(lambda: service.ledger.has(load.confirmed, HANDLER), "all is done")
    assert service.drain() == 0
    for done in service.ledger.sequences().values():
        first = list(dict.fromkeys(done))
        assert first == sorted(first)
        assert (
            len(first) == len(done) or victim == "consumers"
        )  # whose crash window repeats effects
