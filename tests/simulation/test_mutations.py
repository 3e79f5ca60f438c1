"""Each mechanism of the product is broken once, and the simulation notices it."""

from __future__ import annotations

import pytest

from simulation import seams
from simulation.courses import COURSES
from simulation.mutations import MUTATIONS
from simulation.schedule import simulate

#: Schedules within which it has to be noticed.
BUDGET = 300


@pytest.mark.parametrize("name", MUTATIONS)
def test_it_is_noticed_what_is_broken(name: str) -> None:
    breaks, course, first = MUTATIONS[name]
    with seams.in_place(), breaks():
        for seed in (first, *range(BUDGET - 1)):
            if simulate(seed, COURSES[course]).findings:
                return
    pytest.fail(f"{name!r}: not noticed in {BUDGET} schedules of {course!r}")
