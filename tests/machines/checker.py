"""Were the promises held by all supervisors together? Reads every execution and says what it found.

For each handler and key the sequence must rise by one from 0. No two executions of a key, and no
two *processes* on a shard, may overlap; with ``single_active`` no two processes at all. The fence
of a shard must not fall in the order in which handlers began. Everything that was confirmed must
have its effect.

Two things are allowed, because nobody could prevent them, and only where the test made the trouble
that explains them. They are counted and shown:

* A *second effect*, where the process of the first was killed, paused or cut off before it could
  record it: within a moment, or while the handler ran.
* A *stale* execution, of a process that was paused or cut off while its handler ran, and so has
  outlived its lease: it overlaps what the shard's next owner, with a higher fence, does.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from machines.executions import Execution, Fault, Kind

#: Seconds from an effect to the kill (pause, cut) that kept it from being recorded, at most.
WINDOW = 1.0
_MOST_TOLD = 5

Pair = tuple[Execution, Execution]


@dataclass(slots=True)
class Findings:
    """What the ledger tells. All but the last three empty: every promise was held."""

    executions: int = 0
    effects: int = 0
    #: Handler and id of what was confirmed and has no effect.
    lost: list[str] = field(default_factory=list)
    #: Executions that came before their predecessor, or after their successor.
    out_of_order: list[Execution] = field(default_factory=list)
    #: Effects of one id that nothing explains: the earlier and the later.
    repeated: list[Pair] = field(default_factory=list)
    #: Executions of one key at once.
    key_overlaps: list[Pair] = field(default_factory=list)
    #: Executions of one shard (or service) at once, by different processes.
    owner_overlaps: list[Pair] = field(default_factory=list)
    #: A later execution of a shard with a lower fence than an earlier one.
    fallen_fences: list[Pair] = field(default_factory=list)
    #: Executions without an effect, of processes that nothing happened to.
    unfinished: list[Execution] = field(default_factory=list)

    #: Second effects that a fault explains, and the executions that one left without an effect.
    explained: list[Pair] = field(default_factory=list)
    broken_off: list[Execution] = field(default_factory=list)
    #: Executions that outlived their lease, each with the first of its successor's.
    stale: list[Pair] = field(default_factory=list)

    @property
    def held(self) -> bool:
        """Whether every promise was held, within its limit."""
        return not any(facts for _, facts in self._broken())

    @property
    def undisturbed(self) -> bool:
        """Whether every execution had its effect, and the only one of its id."""
        limits = (self.explained, self.broken_off, self.stale)
        return self.held and not any(limits) and self.executions == self.effects

    @property
    def story(self) -> str:
        """What went wrong, in lines: how often, and the first few of each kind."""
        lines = [f"{self.executions} executions, {self.effects} effects"]
        for title, facts in [*self._broken(), *self._allowed()]:
            if facts:
                lines.append(f"{title}: {len(facts)}")
                lines += [f"  {_shown(fact)}" for fact in facts[:_MOST_TOLD]]
            if facts[_MOST_TOLD:]:
                lines.append("  …")
        return "\n".join(lines)

    def _broken(self) -> list[tuple[str, Sequence[object]]]:
        return [
            ("lost", self.lost),
            ("out of order", self.out_of_order),
            ("second effects that nothing explains", self.repeated),
            ("two handlers of a key at once", self.key_overlaps),
            ("two processes of a shard at once", self.owner_overlaps),
            ("fences that fell", self.fallen_fences),
            ("handlers that ended without an effect", self.unfinished),
        ]

    def _allowed(self) -> list[tuple[str, Sequence[object]]]:
        return [
            ("second effects that a fault explains", self.explained),
            ("handlers that a fault broke off", self.broken_off),
            ("handlers that outlived their lease", self.stale),
        ]


def check(
    executions: Sequence[Execution],
    confirmed: Iterable[str],
    handlers: Iterable[str],
    faults: Sequence[Fault] = (),
    *,
    single_active: bool = False,
) -> Findings:
    """Return the verdict on ``executions``. ``confirmed`` are ids, each for every handler."""
    executions = sorted(executions, key=lambda e: e.begin)
    effects = sorted((e for e in executions if e.end is not None), key=_end)
    found = Findings(len(executions), len(effects))
    done = {(e.handler, e.id) for e in effects}
    wanted = [(handler, each) for each in confirmed for handler in handlers]
    found.lost = sorted(f"{place[0]} {place[1]}" for place in wanted if place not in done)
    _check_owners(executions, faults, found, single_active=single_active)
    stale = {id(execution) for execution, _ in found.stale}
    _check_keys(executions, stale, faults, found)
    _check_effects(effects, faults, found)
    times = Counter((e.handler, e.id) for e in effects)
    superseded = {id(e) for e, _ in found.stale if times[e.handler, e.id] > 1}
    _check_order([e for e in effects if id(e) not in superseded], found)
    _check_fences(executions, found)
    for execution in executions:
        if execution.end is None:
            struck = any(fault.met(execution) for fault in faults)
            (found.broken_off if struck else found.unfinished).append(execution)
    return found


# -- one promise each ------------------------------------------------------------------------------


def _check_owners(
    executions: Sequence[Execution],
    faults: Sequence[Fault],
    found: Findings,
    *,
    single_active: bool,
) -> None:
    """One process at a time for a shard, but for who outlived its lease."""
    seen: set[int] = set()
    for first, second in _overlaps(executions, lambda e: 0 if single_active else e.shard, faults):
        if first.pid == second.pid:
            continue
        older, newer = sorted((first, second), key=lambda e: e.fence)
        if older.fence < newer.fence and _outlived(older, faults):
            if id(older) not in seen:
                found.stale.append((older, newer))
                seen.add(id(older))
        else:
            found.owner_overlaps.append((first, second))


def _check_keys(
    executions: Sequence[Execution], stale: set[int], faults: Sequence[Fault], found: Findings
) -> None:
    """One handler at a time for a key, but for who outlived its lease."""
    current = [e for e in executions if id(e) not in stale]
    found.key_overlaps = list(_overlaps(current, lambda e: (e.handler, e.key), faults))


def _check_effects(effects: Sequence[Execution], faults: Sequence[Fault], found: Findings) -> None:
    """No second effect, but where a fault kept the first from being recorded."""
    for times in _by(effects, lambda e: (e.handler, e.id)).values():
        for first, second in itertools.pairwise(times):
            is_allowed = any(_explains(fault, first, second) for fault in faults)
            (found.explained if is_allowed else found.repeated).append((first, second))


def _check_order(effects: Sequence[Execution], found: Findings) -> None:
    """Sequence numbers of a key rise by one; what is repeated goes on from there."""
    for times in _by(effects, lambda e: (e.handler, e.key)).values():
        last, seen = -1, set[int]()
        for execution in times:
            is_new = execution.sequence not in seen
            if execution.sequence > last + 1 or (is_new and execution.sequence <= last):
                found.out_of_order.append(execution)
            last = execution.sequence
            seen.add(last)
        if last < max(seen) and times[-1] not in found.out_of_order:
            found.out_of_order.append(times[-1])  # the past overwrote what came after it


def _check_fences(executions: Sequence[Execution], found: Findings) -> None:
    """In the order of beginning, the fence of a shard never falls."""
    highest: dict[int, Execution] = {}
    for execution in executions:
        before = highest.get(execution.shard)
        if before is not None and execution.fence < before.fence:
            found.fallen_fences.append((before, execution))
        else:
            highest[execution.shard] = execution


# -- what explains what ----------------------------------------------------------------------------


def _outlived(execution: Execution, faults: Sequence[Fault]) -> bool:
    """Tell whether the process was paused or cut off while this ran."""
    return any(
        fault.kind is not Kind.KILL
        and fault.met(execution)
        and fault.since <= _ended(execution, faults)
        and execution.begin <= fault.until
        for fault in faults
    )


def _explains(fault: Fault, first: Execution, second: Execution) -> bool:
    """Tell whether the fault is why an id had two effects."""
    if fault.kind is Kind.KILL:
        waited = fault.since - _end(first)
        return fault.met(first) and 0 <= waited <= WINDOW and fault.since < second.begin
    older, newer = sorted((first, second), key=lambda e: e.fence)
    struck = fault.since - WINDOW <= _end(older) and older.begin <= fault.until
    return older.fence < newer.fence and fault.met(older) and struck


def _overlaps(
    executions: Sequence[Execution],
    group: Callable[[Execution], object],
    faults: Sequence[Fault],
) -> Iterator[Pair]:
    """Yield the pairs of a group that ran at once; ``executions`` are in order of beginning."""
    for some in _by(executions, group).values():
        running: list[Execution] = []
        for execution in some:
            running = [e for e in running if _ended(e, faults) > execution.begin]
            for before in running:
                yield before, execution
            running.append(execution)


def _ended(execution: Execution, faults: Sequence[Fault]) -> float:
    """Return when it ended, or when it was broken off: after that its process did nothing."""
    if execution.end is not None:
        return execution.end
    struck = [f.since for f in faults if f.met(execution) and f.since >= execution.begin]
    return min(struck, default=execution.begin)


def _end(execution: Execution) -> float:
    assert execution.end is not None
    return execution.end


def _by(
    executions: Sequence[Execution], group: Callable[[Execution], object]
) -> Mapping[object, list[Execution]]:
    found = defaultdict[object, list[Execution]](list)
    for execution in executions:
        found[group(execution)].append(execution)
    return found


def _shown(fact: object) -> str:
    if isinstance(fact, tuple):
        return " then\n    ".join(map(str, fact))
    return str(fact)
