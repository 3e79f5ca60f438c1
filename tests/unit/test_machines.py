"""What the tests' own supervisors do when several faults want something of them at once."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from machines.supervisor import Supervisor


def test_a_supervisor_is_asked_to_drain_once_a_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing: Any = None
    sent: list[int] = []
    monkeypatch.setattr(Supervisor, "use_ledger", lambda *_: None)
    monkeypatch.setattr(Supervisor, "signal", lambda _, number: sent.append(number))
    monkeypatch.setattr(Supervisor, "pid", 1)
    supervisor = Supervisor(
        tmp_path, "one", "steps", broker="", dedup="", ledger=nothing, note=nothing, guard=nothing
    )

    supervisor.terminate()
    supervisor.terminate()
    assert sent == [signal.SIGTERM], "a second one would stop it at once, which nobody noted"
    monkeypatch.setattr(Supervisor, "pid", 2)
    supervisor.terminate()
    assert sent == [signal.SIGTERM] * 2
