"""A key that one handler parks while another one waits: both have their order after its return."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress

from acceptance.apps.events import Step
from acceptance.conftest import Place
from acceptance.running import PATIENCE, Load, Service
from waiting import until

HANDLERS = "pair.slow", "pair.quick"
KEYS = "a", "b", "c", "d"


def steps() -> Iterator[Step]:
    """Thirty of each key; the first waits at the one handler, the fourth parks it at the other."""
    for sequence in range(30):
        for key in KEYS:
            yield Step(key=key, sequence=sequence, fault="always" if sequence == 3 else "")


def test_both_handlers_keep_their_order_through_kills(
    place: Place, serve: Callable[..., Service], load: Load
) -> None:
    service = serve(place, "pair", claim_ttl=2)
    service.start_ready("--shards", "2", "--processes", "2")

    killed: set[int] = set()

    def kill_once_parked(more_than: int) -> None:
        until(lambda: service.counter("parked") > more_than, PATIENCE, "some are parked")
        until(lambda: {*service.processes()} - killed, PATIENCE, "some are there to be killed")
        for pid in service.processes():
            killed.add(pid)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def set_free(key: str) -> None:
        command = "dlq", "replay", "--key", key, "--wait", "10"
        until(lambda: service.run(*command).returncode == 0, PATIENCE, f"{key} is free")

    with load.in_background(steps(), batch=8, pause=0.2):
        for parked in (4, 20, 60):
            kill_once_parked(parked)
        until(lambda: len(load.confirmed) == 30 * len(KEYS), PATIENCE, "all are published")
    assert all(entry.sequence for entry in service.ledger.entries("effect", "pair.slow"))

    (service.folder / "mended").touch()
    for key in KEYS:
        set_free(key)
    until(lambda: service.ledger.has(load.confirmed, *HANDLERS), PATIENCE, "all is done")
    assert service.drain() == 0
    for done in service.ledger.sequences().values():
        assert [*dict.fromkeys(done)] == [*range(30)]
