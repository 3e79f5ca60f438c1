"""What was thrown in a trial, and what its kills met: who only starts has nothing to lose."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from chaos.blows import Thrown, counted
from chaos.executions import Execution, Fault, Kind

#: Seconds after it began a handler in which a process is at work.
JUST_NOW = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Toll:
    """Faults, processes that were killed with SIGKILL, and what went on meanwhile."""

    #: How many faults the schedule threw that met somebody, by name.
    faults: Mapping[str, int] = field(default_factory=dict)
    kills: int = 0
    #: Of these, who had begun a handler within JUST_NOW.
    at_work: int = 0
    #: Of these, who were in the midst of one.
    in_handlers: int = 0
    #: By crash points.
    crashes: Mapping[str, int] = field(default_factory=dict)
    #: Effects a second from the first fault to the last.
    pace: float = 0.0


def toll(
    executions: Iterable[Execution], trouble: Sequence[Fault], blows: Iterable[Thrown] = ()
) -> Toll:
    """Return the toll of this trouble, which is what these blows came to."""
    theirs = defaultdict[int, list[Execution]](list)
    effects: list[float] = []
    for execution in executions:
        theirs[execution.pid].append(execution)
        if execution.effect is not None:
            effects.append(execution.effect)
    kills = [f for f in trouble if f.kind is Kind.KILL]
    deaths = [(theirs[pid], fault.since) for fault in kills for pid in fault.pids or ()]
    return Toll(
        faults=counted(blows),
        kills=len(deaths),
        at_work=sum(any(at - JUST_NOW <= e.begin <= at for e in its) for its, at in deaths),
        in_handlers=sum(any(_is_amidst(e, at) for e in its) for its, at in deaths),
        crashes=Counter(fault.what for fault in kills if fault.what),
        pace=_pace(sorted(effects), [f.since for f in trouble if f.kind is not Kind.GONE]),
    )


def _is_amidst(execution: Execution, at: float) -> bool:
    return execution.begin <= at and (execution.end is None or execution.end >= at)


def _pace(effects: Sequence[float], times: Sequence[float]) -> float:
    """Return how many of the effects, in order, a second there were in the span of these times."""
    first, last = min(times, default=0.0), max(times, default=0.0)
    if first == last:
        return 0.0
    return (bisect_right(effects, last) - bisect_left(effects, first)) / (last - first)
