"""What a process had begun when it was stopped, though the handler's first line came later.

The runtime looks at its lease right before the handler, and nobody can look at the same moment as
the handler begins. Who is stopped in between (SIGSTOP, for longer than its lease) begins on waking,
with the fence that it had: some microseconds of an execution's milliseconds, so it is rare, and no
runtime can prevent it (docs/shards.md). To the judge such a handler began before the pause, which
it has outlived: stale, as any other that was paused in its midst.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from chaos.excuses import ended
from chaos.executions import Execution, Fault, Kind

if TYPE_CHECKING:
    from chaos.checker import Case

#: Seconds after it is told to go on until the thread has a core, and the interpreter, to itself.
_WAKING = 0.25


def begun_before(case: Case) -> list[Execution]:
    """Return the executions, in order of beginning; what was begun before a pause begins there.

    One for each pause of a process, and only where somebody with a higher fence had the shard by
    then: a runtime that begins things with a lease that is over would begin more than one.
    """
    executions = sorted(case.executions, key=lambda e: e.begin)
    moved: dict[int, float] = {}
    for pause in case.faults:
        if pause.kind is Kind.PAUSE:
            for pid in pause.pids or ():
                mine = [e for e in executions if e.pid == pid]
                for late in _late(case, mine, pause):
                    moved[id(late)] = _stopped_at(mine, pause)
                    break
    shown = [replace(e, begin=moved[id(e)]) if id(e) in moved else e for e in executions]
    return sorted(shown, key=lambda e: e.begin)


def _late(case: Case, mine: Sequence[Execution], pause: Fault) -> Iterator[Execution]:
    """Yield what a process began as it woke, on a shard that was another's by then."""
    for execution in mine:
        if pause.until <= execution.begin <= pause.until + _WAKING:
            end = ended(execution, case.faults, case.lease_ttl)
            if any(
                other.shard == execution.shard
                and other.fence > execution.fence
                and other.begin <= end
                for other in case.executions
            ):
                yield execution


def _stopped_at(mine: Sequence[Execution], pause: Fault) -> float:
    """Return the last sign of life of a process before it stood still."""
    times = (time for e in mine for time in (e.begin, e.effect, e.end) if time is not None)
    return max((t for t in times if pause.since <= t < pause.until), default=pause.since)
