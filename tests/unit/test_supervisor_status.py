"""The status file: readers see whole ones of living writers, and no others."""

from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from worker.errors import ConfigurationError
from worker.supervisor.control import Terms
from worker.supervisor.reporter import Reporter
from worker.supervisor.status import (
    STALE_AFTER,
    Status,
    StatusFile,
    is_live,
    is_ready,
    read_status,
)


def status(**facts: Any) -> Status:
    usual: dict[str, Any] = {
        "service": "bank",
        "pid": 4711,
        "state": "running",
        "live": True,
        "ready": True,
        "at": 100.0,
        "text": "running, 2 of 2 processes ready",
    }
    return Status(**{**usual, **facts})


@pytest.fixture(autouse=True)
def run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for status files."""
    folder = tmp_path / "run"
    monkeypatch.setenv("QWORKER_RUN_DIR", str(folder))
    return folder


def test_readers_see_the_latest_status_of_a_living_writer() -> None:
    file = StatusFile("bank")
    file.write(status(restarts=1))
    file.write(status(restarts=2))

    (read,) = read_status("bank")

    assert read.restarts == 2
    assert read_status() == [read]
    assert read_status("mailer") == []
    file.remove()
    assert read_status() == []


def test_the_file_of_a_dead_writer_is_ignored_and_removed(run_folder: Path) -> None:
    write_and_die = (
        "import os; from worker.supervisor.status import *;"
        "StatusFile('bank').write(Status('bank', 1, 'running', True, True, 0.0)); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", write_and_die], check=False)
    assert len([*run_folder.glob("*.json")]) == 1

    assert read_status() == []
    assert [*run_folder.glob("*.json")] == []


def test_a_reader_never_sees_half_a_status_nor_takes_a_living_writer_for_dead() -> None:
    file = StatusFile("bank")
    file.write(status())
    done = threading.Event()

    def write() -> None:
        for number in range(3000):
            file.write(status(restarts=number))
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = 0
    while not done.is_set():
        assert len(read_status("bank")) == 1
        seen += 1
    writer.join()

    assert seen > 0


def test_a_status_is_for_its_user_alone(run_folder: Path) -> None:
    StatusFile("bank").write(status())

    (file,) = run_folder.glob("*.json")

    assert run_folder.stat().st_mode & 0o777 == 0o700
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_folder_that_others_can_write_is_refused_unless_it_was_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "runtime" / "qworker"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    monkeypatch.delenv("QWORKER_RUN_DIR")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))

    with pytest.raises(ConfigurationError, match="0700"):
        StatusFile("bank")

    monkeypatch.setenv("QWORKER_RUN_DIR", str(folder))
    StatusFile("bank").write(status())
    assert len(read_status()) == 1


def test_a_service_name_cannot_leave_the_folder(run_folder: Path) -> None:
    file = StatusFile("../../etc/x")

    assert file.path.parent == run_folder


def test_nobody_there_is_neither_live_nor_ready() -> None:
    assert not is_live([], 0.0).ok
    assert "no supervisor" in is_ready([], 0.0).text


def test_live_and_ready_are_two_answers() -> None:
    draining = status(ready=False, text="draining, 0 of 2 processes ready")

    assert is_live([draining], 100.0).ok
    verdict = is_ready([draining], 100.0)
    assert not verdict.ok
    assert "draining" in verdict.text


def test_a_supervisor_whose_loop_stands_is_not_live() -> None:
    verdict = is_live([status()], 100.0 + STALE_AFTER + 1)

    assert not verdict.ok
    assert "no new status for 11 s" in verdict.text


def test_one_of_several_that_is_not_live_decides() -> None:
    assert not is_live([status(), status(service="mailer", live=False)], 100.0).ok


def process(**facts: Any) -> dict[str, Any]:
    return {"index": 0, "stage": "ready", "silent_for": 0.1, "statistics": {}, **facts}


@pytest.mark.parametrize(
    ("later", "is_filed"),
    [
        ({"processes": [process(silent_for=0.9)]}, False),
        ({"processes": [process(stage="draining")]}, True),
        ({"counters": {"handled": 1}}, True),
        ({"text": "draining", "ready": False}, True),
    ],
    ids=str,
)
def test_a_file_that_would_say_the_same_is_written_seldom(
    later: dict[str, Any], is_filed: bool
) -> None:
    reporter = Reporter()
    first = status(processes=[process()], at=100.0)
    reporter.open(Terms("bank", "bank", 1, 1, 1, 25.0, 30.0, 10.0), first)
    reporter.tell(replace(first, at=101.0))

    reporter.tell(replace(first, **later, at=102.5))

    assert [read.at for read in read_status()] == [102.5 if is_filed else 101.0]
    reporter.tell(replace(first, **later, at=107.0))
    assert [read.at for read in read_status()] == [107.0]
    reporter.close()
