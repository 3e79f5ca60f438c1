"""Were the promises held? Reads everything that handlers did, and says what it found, and where.

For each handler and key the sequence must rise by one from 0. No two executions of a key, of
whatever handlers, and no two *processes* on a shard, may overlap; with ``single_active`` no two
processes at all. The fence of a shard must not fall in the order in which handlers began, and is
one supervisor's alone.
Everything that was confirmed must have its effect, or lie where it was set aside for a reason
(:mod:`chaos.deserts`), and nothing both (:mod:`chaos.accounting`).

Two things are allowed, because nobody could prevent them, and only where the test made the trouble
that explains them (:mod:`chaos.excuses`). They are counted and shown:

* A *second effect*, where the process of the first was killed, paused or cut off, or ended by
  itself, before it could record it: within a moment, or while the handler ran; and no more than it
  can have had no time for (:mod:`chaos.recording`). What processes heard to be recorded
  (:mod:`chaos.clerk`) is not begun any more, but where the store forgot it.
* A *stale* execution, of a process that was paused or cut off while its handler ran (or was about
  to, :mod:`chaos.waking`), or whose supervisor was, and so has outlived its lease: it overlaps what
  the shard's next owner, with a higher fence, does.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from chaos.accounting import Accounts
from chaos.excuses import (
    Pair,
    by,
    explains,
    explains_fall,
    is_broken_off,
    outlived,
    overlaps,
    was_recorded,
)
from chaos.executions import Execution, Fault, effect_of
from chaos.findings import Findings
from chaos.recording import check_recording
from chaos.waking import begun_before

#: Handler and id of what has to end, once.
Due = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What there is to judge."""

    executions: Sequence[Execution]
    #: What has to end: in its effect, or by being set aside.
    wanted: Collection[Due]
    faults: Sequence[Fault] = ()
    #: What lies in the dead-letter queue; the handler is empty where it reached none.
    set_aside: Collection[Due] = ()
    #: What lies in the parked queue, of each key in the order in which it would return; the handler
    #: is that which could not do it, and empty where an earlier one of the key was parked.
    parked: Sequence[Due] = ()
    #: What is ordered to fail for good: it may be set aside, and parked at handlers that park keys.
    hopeless: Collection[Due] = ()
    parking: Collection[str] = ()
    #: After so many deaths of its process anything is a dead letter, which says so.
    crash_limit: int = 3
    #: Seconds that leases and claims live without renewal.
    lease_ttl: float = 3.0
    claim_ttl: float = 5.0
    #: Key and sequence of what nobody has to do: it may be missing in the order of its key.
    optional: Collection[tuple[str, int]] = ()
    #: Handlers whose events have no order.
    unordered: Collection[str] = ()
    single_active: bool = False
    #: The memory of ids is in the handler's own transaction: no second effect has an excuse.
    transactional: bool = False
    #: Key and sequence of each id, where it is not to be seen from its executions.
    published: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    #: When each id was sent for the first time; and of those that handlers publish, when the first
    #: such handler began.
    sent: Mapping[str, float] = field(default_factory=dict)
    children: Mapping[str, float] = field(default_factory=dict)
    #: What is written on what is set aside.
    reasons: Mapping[Due, str] = field(default_factory=dict)
    #: Since when, and until when, the number of shards was changed.
    changes: Sequence[tuple[float, float]] = ()
    #: The ids that the broker may have got more than once.
    published_again: Collection[str] = ()
    #: When processes heard of each handler and id that it is recorded, in order.
    recorded: Mapping[Due, Sequence[float]] = field(default_factory=dict)
    #: Handlers that publish: their record waits for the broker's confirm.
    parents: Collection[str] = ()
    #: How many handlers a process runs at once; 0: it is not known.
    concurrency: int = 0


def check(case: Case) -> Findings:
    """Return the verdict."""
    executions = begun_before(case)
    effects = sorted((e for e in executions if e.effect is not None), key=effect_of)
    found = Findings(len(executions), len(effects))
    accounts = Accounts(case, effects)
    accounts.check(found)
    _check_owners(case, executions, found)
    _check_keys(case, executions, found)
    _check_effects(case, effects, found)
    check_recording(case, effects, found)
    found.heedless = [e for e in executions if was_recorded(case, (e.handler, e.id), e.begin)]
    times = Counter((e.handler, e.id) for e in effects)
    superseded = {id(e) for e, _ in found.stale if times[e.handler, e.id] > 1}
    lies = accounts.lies
    _check_order(case, lies, [e for e in effects if id(e) not in superseded], found)
    _check_fences(case, executions, found)
    _check_fence_owners(case, executions, found)
    for execution in executions:
        if execution.end is None:
            struck = is_broken_off(case, execution)
            (found.broken_off if struck else found.unfinished).append(execution)
    return found


# -- one promise each ------------------------------------------------------------------------------


def _check_owners(case: Case, executions: Sequence[Execution], found: Findings) -> None:
    """One process at a time for a shard, but for who outlived its lease."""
    seen: set[int] = set()
    for first, second in overlaps(executions, lambda e: 0 if case.single_active else e.shard, case):
        if first.pid == second.pid:
            continue
        if _is_stale(case, first, second):
            older, newer = sorted((first, second), key=lambda e: e.fence)
            if id(older) not in seen:
                found.stale.append((older, newer))
                seen.add(id(older))
        else:
            found.owner_overlaps.append((first, second))


def _is_stale(case: Case, first: Execution, second: Execution) -> bool:
    """Tell whether one of two processes had outlived its lease when the other's run began."""
    older, newer = sorted((first, second), key=lambda e: e.fence)
    return older.fence < newer.fence and outlived(case, older, newer)


def _check_keys(case: Case, executions: Sequence[Execution], found: Findings) -> None:
    """One handler at a time for a key, whichever it is, but for who outlived its lease.

    Nothing excuses two of one process: it knows what it runs, however long it slept.
    """
    for first, second in overlaps(executions, lambda e: e.key or (e.handler, e.id), case):
        if first.pid == second.pid or not _is_stale(case, first, second):
            found.key_overlaps.append((first, second))


def _check_effects(case: Case, effects: Sequence[Execution], found: Findings) -> None:
    """No second effect, but where a fault kept the first from being recorded."""
    pairs: list[Pair] = []
    for times in by(effects, lambda e: (e.handler, e.id)).values():
        pairs += itertools.pairwise(times)
    for first, second in pairs:
        is_allowed = not case.transactional and explains(case, first, second)
        (found.explained if is_allowed else found.repeated).append((first, second))


def _check_order(
    case: Case, lies: Callable[[Due], bool], effects: Sequence[Execution], found: Findings
) -> None:
    """Sequence numbers of a key rise by one; what is repeated goes on from there.

    ``lies`` tells what is set aside: nothing of its key comes where that is parked, of which
    :mod:`chaos.accounting` tells.
    """
    optional = set(case.optional)
    ids = {place: id_ for id_, place in case.published.items()}
    ordered = [e for e in effects if e.handler not in case.unordered]
    for times in by(ordered, lambda e: (e.handler, e.key)).values():
        handler, key = times[0].handler, times[0].key
        last, seen = -1, set[int]()
        for execution in times:
            missing = (
                n
                for n in range(last + 1, execution.sequence)
                if (key, n) not in optional and not lies((handler, ids.get((key, n), "")))
            )
            is_new = execution.sequence not in seen
            if any(True for _ in missing) or (is_new and execution.sequence <= last):
                found.out_of_order.append(execution)
            last = execution.sequence
            seen.add(last)
        if last < max(seen) and times[-1] not in found.out_of_order:
            found.out_of_order.append(times[-1])  # the past overwrote what came after it


def _check_fence_owners(case: Case, executions: Sequence[Execution], found: Findings) -> None:
    """A fence of a shard belongs to one life of one supervisor, whose processes pass it on."""
    owners: dict[tuple[int, int], Execution] = {}
    for execution in executions:
        if not execution.fence:
            continue  # there are no leases
        place = 0 if case.single_active else execution.shard, execution.fence
        owner = owners.setdefault(place, execution)
        is_another_life = owner.life and execution.life and owner.life != execution.life
        if owner.supervisor != execution.supervisor or is_another_life:
            found.shared_fences.append((owner, execution))


def _check_fences(case: Case, executions: Sequence[Execution], found: Findings) -> None:
    """In the order of beginning, the fence of a shard never falls; once, where it is forgotten."""
    highest: dict[int, Execution] = {}
    for execution in executions:
        before = highest.get(execution.shard)
        if before is None or execution.fence >= before.fence:
            highest[execution.shard] = execution
        elif explains_fall(case.faults, before, execution):
            found.forgotten_fences.append((before, execution))
            highest[execution.shard] = execution  # from here on it must rise again
        else:
            found.fallen_fences.append((before, execution))
