"""The supervisor's loop, without processes."""

from __future__ import annotations

from contextlib import closing

import pytest

from worker.supervisor.supervisor import Supervisor
from worker.testing import FakeClock


def test_time_in_which_the_supervisor_stood_is_no_silence_of_its_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = FakeClock()
    forgiven: list[float] = []
    monkeypatch.setattr("worker.supervisor.supervisor.time.monotonic", clock)
    with closing(Supervisor({}, [])) as supervisor:
        monkeypatch.setattr(supervisor._fleet, "forgive", forgiven.append)

        def goes_round() -> None:
            supervisor._signals.wake()
            supervisor._wait()

        goes_round()
        clock.advance(60)  # between two waits: while it listens, say
        goes_round()
        goes_round()

    assert forgiven == [60]
