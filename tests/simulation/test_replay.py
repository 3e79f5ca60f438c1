"""A seed is a replay: the same steps, calls and times, in any process."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from simulation import seams
from simulation.courses import COURSES
from simulation.schedule import simulate

TESTS = Path(__file__).parents[1]
SEEDS = range(1000, 1003)


def prints(course: str) -> list[str]:
    """Return a digest of the trace of each seed."""
    with seams.in_place():
        return [
            hashlib.sha256("\n".join(simulate(seed, COURSES[course]).trace).encode()).hexdigest()
            for seed in SEEDS
        ]


def elsewhere(course: str, hash_seed: str) -> list[str]:
    """Return the same from another process, in which sets have another order."""
    code = f"from simulation.test_replay import prints; print(*prints({course!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


@pytest.mark.parametrize("course", COURSES)
def test_a_seed_is_a_replay(course: str) -> None:
    first = prints(course)

    assert prints(course) == first
    assert elsewhere(course, "1") == first
    assert elsewhere(course, "2") == first
    assert len({*first}) == len(SEEDS)
