"""Breaks one mechanism of the product at a time, and demands that the judge turns red.

    python tests/simulation/mutate.py                        # all of them, the story of each red
    python tests/simulation/mutate.py --only 'every claim is fresh' --whole

Each has so many schedules (``--budget``), from the first seed on: whether it is noticed must not
hang on the seed that noticed it once. Ends with 1 where one is not noticed. ``--help`` tells the
rest.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from simulation import seams
from simulation.courses import COURSES
from simulation.ledger import Finding
from simulation.mutations import MUTATIONS, Mutation
from simulation.schedule import Result, simulate
from simulation.stories import story

_BUDGET = 300

_ABOUT = """\
Breaks one mechanism of the product after the other (the fence, the compare-and-set of a claim, the
hold of a retry, ...) and shows that the simulation notices each.

For each it runs schedules, of the seeds 0, 1, 2 and so on, until the judge turns red. A schedule is
one run of the simulated service, in one thread and by a simulated clock: it takes a tenth of a
second or so, needs no server, and is the same on every machine. The story of each red is printed as
soon as it is there, and a table at the end: how many schedules it took, how many seconds of this
machine, and what the judge said. All of them take about a minute.
"""
_MORE = """\
examples:
  mutate.py                                             all of them, the story of each
  mutate.py --only 'every claim is fresh' --whole       one of them, with all that happened
  mutate.py --budget 20                                 which ones do 20 schedules notice?

exit codes:
  0  all that was broken was noticed
  1  something was not; the last line tells what
  2  an option is wrong

names, for --only:
  """


class Red(NamedTuple):
    """A schedule that showed what is broken."""

    result: Result
    finding: Finding


def first_red(broken: Mutation, budget: int) -> tuple[int, Red | None]:
    """Return how many schedules it took, and the one that turned red; None: none did."""
    with seams.in_place(), broken.breaks():
        for seed in range(budget):
            result = simulate(seed, COURSES[broken.course])
            finding = broken.noticed(result)
            if finding is not None:
                return seed + 1, Red(result, finding)
    return budget, None


def told(name: str, course: str, red: Red | None, *, whole: bool) -> str:
    """Return what is printed of one that is broken: the story of its red."""
    if red is None:
        return f"{name}: NOT NOTICED by the schedules of {course!r}\n"
    lines = story(red.finding, red.result.trace)
    if whole:
        lines = [lines[0], *red.result.trace]
    return "\n".join([f"{name} (seed {red.result.seed} of {course!r}):", *_indented(lines)]) + "\n"


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"  {line}" for line in lines]


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="mutate.py",
        description=_ABOUT,
        epilog=_MORE + "\n  ".join(MUTATIONS),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--budget",
        type=_positive,
        default=_BUDGET,
        metavar="N",
        help="schedules for each, at most; whoever is not noticed by then is missed (%(default)s)",
    )
    parser.add_argument(
        "--only", choices=MUTATIONS, metavar="NAME", help="this one alone, by its name (all)"
    )
    parser.add_argument(
        "--whole",
        action="store_true",
        help="print all that happened in the red schedule, instead of the lines that concern what"
        " is wrong",
    )
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it."""
    options = _parse(arguments)
    missed = []
    rows = ["| turned off | how | schedules | seconds | what the judge says |", "|---" * 5 + "|"]
    for name in [options.only] if options.only else MUTATIONS:
        broken = MUTATIONS[name]
        began = monotonic()
        number, red = first_red(broken, options.budget)
        seconds = monotonic() - began
        print(told(name, broken.course, red, whole=options.whole), flush=True)
        said = "NOT NOTICED" if red is None else red.finding.text.partition(":")[0]
        took = f"{number} of *{broken.course}* | {seconds:.1f}"
        rows.append(f"| {broken.mechanism} | {name} | {took} | {said} |")
        missed += [name] if red is None else []
    print("\n".join(rows))
    if missed:
        print(f"\n{len(missed)} of {len(rows) - 2} not noticed: {', '.join(missed)}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
