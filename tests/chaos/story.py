"""The shortest story of an offending key: what was published, done and broken around the place."""

from __future__ import annotations

from collections.abc import Sequence

from chaos.executions import Execution, Fault
from chaos.findings import Findings
from chaos.history import Entry

#: Sequence numbers before and after what is wrong that belong to its story.
_AROUND = 1
#: Seconds around it in which trouble belongs to it.
_NEAR = 5.0
_MOST_LINES = 60


def story(found: Findings, entries: Sequence[Entry], faults: Sequence[Fault]) -> list[str]:
    """Return a timeline for the first fact of each kind that is broken."""
    lines: list[str] = []
    for title, facts in found.broken:
        if not facts:
            continue
        lines.append(f"{title}: {len(facts)}, the first one:")
        lines.append("  " + " then ".join(map(str, _parts(facts[0]))))
        lines += [f"    {line}" for line in _timeline(facts[0], entries, faults)]
    return lines


def _parts(fact: object) -> tuple[object, ...]:
    return fact if isinstance(fact, tuple) else (fact,)


def _timeline(fact: object, entries: Sequence[Entry], faults: Sequence[Fault]) -> list[str]:
    mine = _concerned(fact, entries)
    if not mine:
        return []
    pids = {entry.pid for entry in mine}
    first, last = mine[0].at, mine[-1].at
    told = [(entry.at, _line(entry)) for entry in mine]
    for fault in faults:
        theirs = fault.pids is None or fault.pids & pids
        if theirs and fault.since <= last + _NEAR and fault.until >= first - _NEAR:
            told.append((fault.since, str(fault)))
    told.sort()
    shown = told[:_MOST_LINES]
    lines = [f"{at - first:+9.3f} s  {text}" for at, text in shown]
    if told[_MOST_LINES:]:
        lines.append(f"… and {len(told) - _MOST_LINES} lines more")
    return lines


def _concerned(fact: object, entries: Sequence[Entry]) -> list[Entry]:
    """Return the lines of the history that tell of the key, near the place."""
    ran = [part for part in _parts(fact) if isinstance(part, Execution)]
    keys = {e.key for e in ran}
    numbers = {e.sequence for e in ran}
    if not ran:  # something that never was: handler and id
        id_ = str(fact).rpartition(" ")[2]
        about = [entry for entry in entries if entry.id == id_]
        keys, numbers = {entry.key for entry in about}, {entry.sequence for entry in about}
    handlers = {e.handler for e in ran}
    near = {n + d for n in numbers for d in range(-_AROUND, _AROUND + 1)}
    return [
        entry
        for entry in entries
        if entry.key in keys
        and entry.what not in ("fault", "blow")
        and entry.sequence in near
        and (not handlers or not entry.handler or entry.handler in handlers)
    ]


def _line(entry: Entry) -> str:
    what = f"{entry.what:9} {entry.key}#{entry.sequence}"
    if not entry.handler:
        return f"{what} {entry.id}"
    detail = f" {entry.detail}" if entry.detail else ""
    return (
        f"{what} {entry.handler} attempt {entry.attempt}, shard {entry.shard} fence {entry.fence},"
        f" {entry.supervisor} pid {entry.pid}{detail}"
    )
