"""What happened in a trial, held or broken, for who wants to see it: what was to strike, and did.

Times are seconds from the first publication, which is when the schedule begins.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from chaos.blows import Thrown, thrown
from chaos.executions import Execution, Fault, Kind
from chaos.history import Entry
from chaos.nemesis import Blow

#: Faults that the blow beside them tells already, or that follow from another.
_TOLD = (Kind.GONE, Kind.LAPSE)
#: What ends a process in the midst of handlers.
_ENDS = (Kind.KILL, Kind.STOP)
#: Seconds below which a blow was a moment.
_MOMENT = 0.1
_SECONDS_A_LINE = 10

#: When, and what; the second number keeps a blow before what came of it.
_Told = tuple[float, int, str]


def timeline(
    schedule: Sequence[Blow],
    entries: Sequence[Entry],
    executions: Sequence[Execution],
    faults: Sequence[Fault],
) -> list[str]:
    """Return the schedule, what was struck when, and how many effects there were each second."""
    if not entries:
        return ["nothing happened"]
    zero = next((e.at for e in entries if e.what == "invoke"), entries[0].at)
    told = [*_blows(thrown(entries), faults), *_deaths(executions, faults), *_milestones(entries)]
    return [
        f"The schedule of its seed, {len(schedule)} blows:",
        *(f"  {blow}" for blow in schedule),
        "What happened:",
        *(f"  {at - zero:7.2f} s  {text}" for at, _, text in sorted(told)),
        "Effects, second by second:",
        *(f"  {line}" for line in _effects(zero, executions)),
    ]


def _blows(blows: Sequence[Thrown], faults: Sequence[Fault]) -> Iterator[_Told]:
    for blow in blows:
        seconds = blow.until - blow.since
        span = f", for {seconds:.2f} s" if blow.met and seconds > _MOMENT else ""
        whom = ", ".join(blow.met) or "met nobody"
        yield blow.since, 0, f"{blow.fault}{span}: {whom}"
    names = {blow.fault for blow in blows}
    for fault in faults:
        if fault.kind not in (*_TOLD, *_ENDS) and fault.what not in names:
            yield fault.since, 1, f"  -> {fault.what or fault.kind.value}: {_whom(fault)}"


def _deaths(executions: Sequence[Execution], faults: Sequence[Fault]) -> Iterator[_Told]:
    for fault in faults:
        if fault.kind in _ENDS:
            amidst = sum(
                e.pid in (fault.pids or ()) and e.begin <= fault.since and _is_open(e, fault.since)
                for e in executions
            )
            handlers = f", in the midst of {amidst} handlers" if amidst else ""
            how = fault.what or fault.kind.value
            yield fault.since, 1, f"  -> {how}: {_whom(fault)}{handlers}"


def _is_open(execution: Execution, at: float) -> bool:
    return execution.end is None or execution.end >= at


def _whom(fault: Fault) -> str:
    pids = " ".join(map(str, sorted(fault.pids or ())))
    return f"{fault.supervisor or 'everybody'}{f' pid {pids}' if pids else ''}"


def _milestones(entries: Sequence[Entry]) -> Iterator[_Told]:
    for what, title in (("confirmed", "confirmed events"), ("effect", "effects")):
        times = [entry.at for entry in entries if entry.what == what]
        if times:
            yield times[0], 2, f"the first of {len(times)} {title}"
            yield times[-1], 2, f"the last of {len(times)} {title}"


def _effects(zero: float, executions: Sequence[Execution]) -> list[str]:
    number = Counter(int(e.effect - zero) for e in executions if e.effect is not None)
    seconds = range(max(number, default=-1) + 1)
    return [
        f"{line[0]:7} s  {' '.join(f'{number[second]:4}' for second in line)}"
        for line in (seconds[n : n + _SECONDS_A_LINE] for n in seconds[::_SECONDS_A_LINE])
    ]
