"""What is kept of each trial of a campaign, a line of JSON; and what many of them add up to."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from chaos.findings import Findings
from chaos.trial import Verdict

Record = Mapping[str, Any]
#: A place and a tier, and the records of the trials there; and what a row tells of these.
_Column = tuple[str, Sequence[Record]]
_Number = Callable[[Sequence[Record]], float]

#: How often each fault was thrown; a record of before that was noted lacks it.
FAULTS = "faults"
#: What a record says of a trial that the harness itself could not carry out.
ERROR = "harness error"


def record(facts: Record, verdict: Verdict) -> dict[str, Any]:
    """Return what is kept of a trial; ``facts`` tell which it was, and where it played."""
    found = verdict.findings
    return {
        "seed": verdict.plan.seed,
        **facts,
        "held": verdict.held,
        FAULTS: dict(verdict.toll.faults),
        "kills": verdict.toll.kills,
        "at_work": verdict.toll.at_work,
        "in_handlers": verdict.toll.in_handlers,
        "crashes": dict(verdict.toll.crashes),
        "pace": round(verdict.toll.pace, 1),
        "events": verdict.published,
        "unknown": verdict.unknown,
        "executions": found.executions,
        "effects": found.effects,
        "set_aside": verdict.set_aside,
        **{name: len(told) for name, told in found.broken},
        ERROR: verdict.error,
        "explained": len(found.explained),
        "stale": len(found.stale),
        "recovery": round(verdict.recovery, 2),
    }


def held(records: Sequence[Record]) -> bool:
    """Tell whether there are trials, and all of them kept every promise."""
    return bool(records) and all(each["held"] for each in records)


def table(records: Sequence[Record]) -> str:
    """Return what a campaign found, as a table in Markdown: a column for each place and tier."""
    groups = defaultdict[str, list[Record]](list)
    for each in records:
        groups[f"{each['place']}, {each['tier']}"].append(each)
    columns: list[_Column] = [*sorted(groups.items()), ("all", [*records])]
    lines = _rows("", columns, _ROWS)
    lines += _thrown(columns)
    crashes = Counter[str]()
    for each in records:
        crashes.update(each["crashes"])
    if crashes:
        lines += ["", "Killed at crash points:", ""]
    lines += [f"- {name.removeprefix('kill -9, ')}: {n}" for name, n in crashes.most_common()]
    broken = [each for each in records if not each["held"]]
    if broken:
        lines += ["", "Broken trials:", ""]
        lines += [f"- seed {each['seed']}: {_complaint(each)}" for each in broken]
    return "\n".join(lines)


def _thrown(columns: Sequence[_Column]) -> list[str]:
    """Return a table of what was thrown, by fault; nothing where no record tells it."""
    told = [(name, [each for each in some if FAULTS in each]) for name, some in columns]
    (_, every), (_, of_all) = columns[-1], told[-1]
    if not of_all:
        return []
    times = Counter[str]()
    for each in of_all:
        times.update(each[FAULTS])
    rows: dict[str, _Number] = {name: partial(_times, name) for name, _ in times.most_common()}
    rows["all faults"] = lambda some: sum(sum(each[FAULTS].values()) for each in some)
    of_which = "" if len(of_all) == len(every) else f" in {len(of_all)} of {len(every)} trials"
    return ["", f"Faults thrown{of_which}:", "", *_rows("fault", told, rows)]


def _times(name: str, some: Sequence[Record]) -> int:
    return sum(each[FAULTS].get(name, 0) for each in some)


def _rows(corner: str, columns: Sequence[_Column], rows: Mapping[str, _Number]) -> list[str]:
    return [
        f"|{f' {corner}' if corner else ''} | {' | '.join(name for name, _ in columns)} |",
        "|---|" + "---:|" * len(columns),
        *(
            f"| {title} | {' | '.join(f'{of(some):,}' for _, some in columns)} |"
            for title, of in rows.items()
        ),
    ]


def total(records: Sequence[Record], name: str) -> Any:
    """Return the sum of a number; a record of before there was such a thing has none of it."""
    return sum(each.get(name, 0) for each in records)


def _summed(name: str) -> _Number:
    return lambda some: total(some, name)


#: What must not be, by kind: whatever the judge looks for has a row.
_BROKEN = [name for name, _ in Findings().broken]

_ROWS: Mapping[str, _Number] = {
    "trials": len,
    "broken trials": lambda some: sum(not each["held"] for each in some),
    "kills": _summed("kills"),
    "killed at work": _summed("at_work"),
    "killed in the midst of handlers": _summed("in_handlers"),
    "events": _summed("events"),
    "effects": _summed("effects"),
    "set aside": _summed("set_aside"),
    "effects a second under fire": lambda some: round(total(some, "pace") / max(1, len(some)), 1),
    **{name: _summed(name) for name in _BROKEN},
    "harness errors": lambda some: sum(bool(each.get(ERROR)) for each in some),
    "second effects in the crash window": _summed("explained"),
    "handlers that outlived their lease": _summed("stale"),
    "longest recovery, s": lambda some: max((each["recovery"] for each in some), default=0),
}


def _complaint(of: Record) -> str:
    if of.get(ERROR):
        return f"{ERROR}: {of[ERROR]}"
    return ", ".join(f"{name}: {of[name]}" for name in _BROKEN if of.get(name))
