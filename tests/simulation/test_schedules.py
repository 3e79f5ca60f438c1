"""Whatever happens, in whatever order: the promises are held.

``SIMULATION_SEED`` runs one seed and shows its trace; ``SIMULATION_SCHEDULES`` says how many
schedules of each kind are run, from ``SIMULATION_FIRST`` on.
"""

from __future__ import annotations

import os

import pytest

from simulation import seams
from simulation.courses import COURSES
from simulation.reports import told
from simulation.schedule import simulate

#: How many schedules of each kind are run with every change, and in how many parts.
USUAL = {
    "short": 100,
    "processes": 30,
    "members": 40,
    "sleepers": 20,
    "naps": 24,
    "cuts": 24,
    "breaks": 24,
    "revisions": 24,
    "gaps": 20,
    "children": 40,
    "transactions": 40,
    "parked": 30,
    "poison": 40,
    "others": 40,
    "alone": 24,
    "machines": 16,
    "reshard": 20,
    "releases": 20,
    "flickers": 20,
}
PARTS = 2

SEED = os.environ.get("SIMULATION_SEED")
ASKED = os.environ.get("SIMULATION_SCHEDULES")
FIRST = int(os.environ.get("SIMULATION_FIRST", "0"))


def seeds(course: str, part: int) -> range:
    """Return the seeds of one part."""
    if SEED is not None:
        return range(int(SEED), int(SEED) + (part == 0))
    number = int(ASKED) if ASKED is not None else USUAL[course]
    return range(FIRST + part, FIRST + number, PARTS)


@pytest.mark.timeout(0 if ASKED else 120)
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("course", COURSES)
def test_promises_are_held(course: str, part: int) -> None:
    with seams.in_place():
        for seed in seeds(course, part):
            result = simulate(seed, COURSES[course])
            if SEED is not None:
                print(*result.trace, sep="\n")  # noqa: T201 - it was asked for
            assert not result.findings, told(course, result)
