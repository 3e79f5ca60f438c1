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


#: Sets its clocks, before anybody imports them, and says what ``prints`` found.
_PROGRAM = """
import sys, time
for name in ("monotonic", "time"):
    setattr(time, name, lambda clock=getattr(time, name): clock() + float(sys.argv[1]))
import simulation.test_replay
print(*simulation.test_replay.prints().values())
"""


def elsewhere(hash_seed: str, ahead: float) -> list[str]:
    """Return the same from another process: sets have another order there, and clocks go ahead."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(ahead)],
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
    # Nothing goes by the clock of this machine, be it ahead of the simulation's or behind it.
    assert elsewhere("1", 1e6) == [*first.values()]
    assert elsewhere("2", -1e6) == [*first.values()]
