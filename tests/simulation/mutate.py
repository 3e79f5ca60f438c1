"""Breaks one mechanism of the product at a time, and demands that the judge turns red.

    python tests/simulation/mutate.py                        # all of them
    python tests/simulation/mutate.py --only 'every claim is fresh' --story

Each has so many schedules (``--budget``), from the first seed on: whether it is noticed must not
hang on the seed that noticed it once. Ends with 1 where one is not noticed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from time import monotonic

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from simulation import seams
from simulation.courses import COURSES
from simulation.mutations import MUTATIONS, Mutation
from simulation.reports import told
from simulation.schedule import Result, simulate

_BUDGET = 300


def first_red(broken: Mutation, budget: int) -> tuple[int, Result | None]:
    """Return how many schedules it took, and the one that turned red; None: none did."""
    with seams.in_place(), broken.breaks():
        for seed in range(budget):
            result = simulate(seed, COURSES[broken.course])
            if result.findings:
                return seed + 1, result
    return budget, None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget", type=int, default=_BUDGET, help="schedules for each")
    parser.add_argument("--only", choices=MUTATIONS, help="this one alone")
    parser.add_argument("--story", action="store_true", help="tell all of what happened")
    options = parser.parse_args(arguments)
    missed = 0
    print("| broken | schedules | seconds | what the judge says first |\n|---|---|---|---|")
    for name in [options.only] if options.only else MUTATIONS:
        broken = MUTATIONS[name]
        began = monotonic()
        number, red = first_red(broken, options.budget)
        seconds = monotonic() - began
        said = red.findings[0][1].partition(":")[0] if red is not None else "NOT NOTICED"
        missed += red is None
        print(f"| {name} | {number} of '{broken.course}' | {seconds:.1f} | {said} |", flush=True)
        if red is not None and options.story:
            print("\n" + told(broken.course, red) + "\n", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
