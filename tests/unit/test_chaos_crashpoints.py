"""Crash points that several faults arm at once; and what somebody does who dies at one."""

from __future__ import annotations

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from chaos.crashpoints import _ALL, Board, _Arming, resolve
from chaos.executions import faults
from chaos.history import History
from processes import printed_elsewhere


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "points.json"


def told(file: Path) -> Any:
    return json.loads(file.read_bytes())


def test_a_point_is_armed_while_the_block_runs(file: Path) -> None:
    with Board(file).armed({"here": 0.5}):
        assert told(file) == {"here": 0.5}
    assert told(file) == {}


def test_a_block_that_ends_disarms_nothing_of_another(file: Path) -> None:
    board = Board(file)
    one, other = board.armed({"here": 0.25}), board.armed({"here": 0.5, "there": 0.75})
    with one:
        other.__enter__()
        assert told(file) == {"here": 0.75, "there": 0.75}
    assert told(file) == {"here": 0.5, "there": 0.75}
    other.__exit__(None, None, None)
    assert told(file) == {}


def test_two_blocks_that_arm_the_same_are_still_two(file: Path) -> None:
    board = Board(file)
    with board.armed({"here": 0.75}):
        with board.armed({"here": 0.75}):
            assert told(file) == {"here": 1.0}
        assert told(file) == {"here": 0.75}


def test_a_block_that_fails_is_disarmed(file: Path) -> None:
    with pytest.raises(ValueError, match="a fault"), Board(file).armed({"here": 0.5}):
        raise ValueError("a fault")
    assert told(file) == {}


def test_many_threads_arm_and_disarm_at_once(file: Path) -> None:
    board = Board(file)

    def arm(number: int) -> None:
        for _ in range(100):
            with board.armed({f"point {number}": 0.5}):
                assert told(file)[f"point {number}"] == 0.5

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(arm, range(8)))
    assert told(file) == {}


def test_who_dies_notes_it_and_waits_for_no_disk(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[object] = []
    monkeypatch.setattr(os, "fdatasync", lambda _: done.append("waits"))
    monkeypatch.setattr(os, "kill", lambda pid, number: done.append((pid, number)))
    history = tmp_path / "history"

    with Board(file).armed({"here": 1.0}):
        _Arming(file, history).reach("here")

    assert done == [(os.getpid(), signal.SIGKILL)]
    (fault,) = faults(History(history).entries("fault"))
    assert fault.pids == frozenset({os.getpid()})
    assert fault.what == "kill -9, here"


PROGRAM = """
import os, sys
os.environ |= {"CHAOS_POINTS": "points", "CHAOS_HISTORY": "history"}
from chaos import crashpoints
crashpoints.install()
imported = [m for m in sys.modules if m.partition(".")[0] in ("worker", "kombu", "amqp")]
import worker.tenure, worker.supervisor.keeper
points = [p for p in crashpoints.POINTS.values() if p.module in sys.modules]
wrapped = [hasattr(crashpoints.resolve(p)[2], "__wrapped__") for p in points]
print(imported, len(wrapped) > 5, all(wrapped))
"""


def test_a_module_is_wrapped_where_it_is_imported_and_not_imported_for_that() -> None:
    assert printed_elsewhere(PROGRAM) == "[] True True"


@pytest.mark.parametrize("name", dict(_ALL))
def test_each_point_is_at_a_function_that_is_there(name: str) -> None:
    """All of them, also those of integrations that few tests arm."""
    points = [point for each, point in _ALL if each == name]
    assert all(callable(resolve(point)[2]) for point in points)
