"""What a kill kept from being recorded: how old it was, and whether it can have been so much.

A second effect is explained by a kill within a moment of the first (``excuses.WINDOW``), which is
long beside the milliseconds that the runtime takes. So a runtime that forgets what was done would
have an excuse wherever processes die all the time. What a process was told to be recorded has none
(:mod:`chaos.clerk`). For what the store was not asked to record, two things tell such a runtime
from one that had no time:

- **Order.** What ended is recorded in its order, all of a tick in one round trip. So a process that
  recorded something also recorded what the same handler had ended well before that (by more than
  ``excuses.SLACK``).
- **Number.** A process has only so much under way: what it runs, what it has claimed ahead, and as
  much again, whose record is on its way or waits for the next round.
"""

from __future__ import annotations

import bisect
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from chaos.excuses import AT_ONCE, SLACK, age_at, explains, kill_of
from chaos.executions import Execution, effect_of
from chaos.findings import Findings

if TYPE_CHECKING:
    from chaos.checker import Case

#: As the runtime claims ahead: so many seconds of its work (worker/dispatch.py), by how much it did
#: in such a time (worker/consumer.py).
_AHEAD, _MEASURED = 0.02, 0.25


def check_recording(case: Case, effects: Sequence[Execution], found: Findings) -> None:
    """Add the ages of what kills explain, and what they cannot explain after all."""
    others = replace(case, faults=[f for f in case.faults if f.kind not in AT_ONCE])
    recorded = _recorded(case, effects, found)
    number = Counter[tuple[float, int]]()
    for first, second in found.explained:
        kill = kill_of(case, first, second)
        if kill is None:
            continue
        found.ages.append(age_at(case.faults, first, kill))
        # A handler that published waits for the broker: its record has another order, and any
        # number of them may wait. What has one more excuse is not judged by this one.
        if first.handler in case.parents or explains(others, first, second):
            continue
        number[kill.since, first.pid] += 1
        if first.end is not None:
            ends = recorded[first.pid, first.handler]
            place = bisect.bisect_right(ends, first.end + SLACK)
            if place < len(ends) and ends[place] <= kill.since:
                found.forgotten.append((first, second))
    found.ages.sort()
    if case.concurrency:
        for (since, pid), explained in sorted(number.items()):
            most = 2 * (case.concurrency + _ahead(case.executions, pid))
            if explained > most:
                found.too_many.append(
                    f"pid {pid}, killed at {since:.3f}: {explained} effects were not recorded,"
                    f" and {most} at most can be under way"
                )


def _recorded(
    case: Case, effects: Sequence[Execution], found: Findings
) -> dict[tuple[int, str], list[float]]:
    """Return when that ended, by process and handler, which was recorded: nobody did it again."""
    again = {id(first) for first, _ in [*found.explained, *found.repeated]}
    aside = {id_ for _, id_ in (*case.set_aside, *case.parked)}
    ends = defaultdict[tuple[int, str], list[float]](list)
    for execution in effects:
        if execution.end is not None and id(execution) not in again and execution.id not in aside:
            ends[execution.pid, execution.handler].append(execution.end)
    for times in ends.values():
        times.sort()
    return ends


def _ahead(executions: Sequence[Execution], pid: int) -> int:
    """Return how much a process may have claimed beyond what it runs, at its busiest."""
    ends = sorted(effect_of(e) for e in executions if e.pid == pid and e.effect is not None)
    busiest = max(
        (bisect.bisect_right(ends, end + _MEASURED) - n for n, end in enumerate(ends)), default=0
    )
    return int(busiest / _MEASURED * _AHEAD) + 1
