"""Crash points are armed by several faults at once, each of which takes back its own."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from chaos.crashpoints import Board


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
