"""A supervisor on a terminal: closing the window ends it, as nobody could see it any more."""

from __future__ import annotations

import os
import pty
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from processes import is_alive
from supervised import MAIN, ROOT, Supervised
from waiting import until


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Supervised]:
    """A service that is not started yet."""
    supervised = Supervised(tmp_path)
    yield supervised
    supervised.end()


def test_closing_the_terminal_drains(
    service: Supervised, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("QWORKER_RUN_DIR", str(service.run_folder))
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, str(MAIN), "{}"])  # noqa: S606 - our own
    until(lambda: service.status().get("ready"), 30)

    os.close(terminal)

    assert until(lambda: _exit_code(pid), message="it ended") == "exit code 0"
    assert [entry.about for entry in service.journal("close")] == ["DRAINED", "DRAINED"]
    assert not any(map(is_alive, service.pids_seen()))


def _exit_code(pid: int) -> str:
    """Tell how a child ended, once; nothing while it runs."""
    ended, status = os.waitpid(pid, os.WNOHANG)
    return f"exit code {os.waitstatus_to_exitcode(status)}" if ended else ""
