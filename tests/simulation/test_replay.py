"""A seed is a replay: the same steps, calls and times, in any process."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from simulation import seams
from simulation.courses import COURSES
from simulation.schedule import simulate

TESTS = Path(__file__).parents[1]
SEEDS = range(1000, 1001)


def prints() -> dict[str, str]:
    """Return a digest of the trace of each seed of each kind of schedule."""
    with seams.in_place():
        return {
            f"{course} {seed}": _digest(simulate(seed, COURSES[course]).trace)
            for course in COURSES
            for seed in SEEDS
        }


def _digest(trace: list[str]) -> str:
    return hashlib.sha256("\n".join(trace).encode()).hexdigest()


def elsewhere(hash_seed: str) -> list[str]:
    """Return the same from another process, in which sets have another order."""
    done = subprocess.run(
        [sys.executable, "-c", "import simulation.test_replay as t; print(*t.prints().values())"],
        env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


def test_a_seed_is_a_replay_here_and_in_another_process() -> None:
    first = prints()

    assert len({*first.values()}) == len(first)
    assert prints() == first
    assert elsewhere("1") == [*first.values()]
