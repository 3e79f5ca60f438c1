"""What explains what: the limits of the promises, and nothing beyond them.

A second effect has an excuse where nobody could have known of the first one: before its process
could record it, that was killed, paused or cut off, or ended by itself: told to stop in the midst
of the handler, without a store that answers, or at the end of the drain of one whose supervisor is
dead. Or what was recorded is forgotten. Where the memory of ids is in the handler's own transaction
there is no excuse at all.

So a handler without an end has one: its process was killed or told to stop, died of a pause or a
cut, or lost its supervisor (:mod:`chaos.orphans`), and ended with it.

A pause or a cut explains what somebody else did only where it took long enough for him to have the
shard: it began before he did, and by then the lease that was renewed last before it may have ended,
and for a second effect the claim too.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from chaos.acknowledging import may_be_open
from chaos.executions import Execution, Fault, Kind, gone_at, outcome_of
from chaos.orphans import BROKER_WAIT, orphan_drain, orphaned, over

if TYPE_CHECKING:
    from chaos.checker import Case

#: Seconds from an effect to the kill (pause, cut) that kept it from being recorded, at most. Half
#: of one was seen, on two cores that ran a dozen processes. What the store was heard to have
#: recorded by then has no excuse anyhow.
WINDOW = 1.0
#: Seconds from the line that tells of a handler's end until it returns, at most: it waits for the
#: disk, and nobody records what has not returned.
SLACK = 0.5
#: What ends a process at once.
AT_ONCE = (Kind.KILL, Kind.STOP)
#: Seconds that a process which notes its own death at a crash point goes on, in other threads.
_DYING = 0.25
#: Seconds from the last try of a process that ends to record what it did, until it is gone.
_LAST_TRY = 0.25
#: Seconds after a pause, or a cut, in which a process still dies of it: its supervisor, which has
#: no sign of life of it, makes it show its stack for a second and kills it.
_AFTERMATH = 2.0
#: Seconds between two renewals of a lease, at most (worker/supervisor/keeper.py), and the share of
#: its length for which it is trusted.
_RENEWED, _TRUSTED = 1.0, 0.85
#: The share of its length for which a claim is trusted, and that by which it may have been renewed
#: before a fault (worker/dialogue.py).
_CLAIM_TRUSTED, _CLAIM_AGE = 0.9, 0.5

Pair = tuple[Execution, Execution]


def outlived(case: Case, older: Execution, newer: Execution) -> bool:
    """Tell whether the process lost its leases while the older one ran, before the newer one began.

    It was paused, cut off, or its leases were not renewed; and for as long as they lasted.
    """
    return any(
        fault.kind in _LOSES_LEASES
        and fault.met(older)
        and fault.since <= ended(older, case.faults, case.lease_ttl)
        and older.begin <= fault.until
        and _lasted(case, fault, older, newer.begin) >= _lease(case)
        for fault in case.faults
    )


_LOSES_LEASES = (Kind.PAUSE, Kind.CUT, Kind.LAPSE)


def _lease(case: Case) -> float:
    """Return the seconds after which a lease may have ended that is renewed no more."""
    return _TRUSTED * case.lease_ttl - _RENEWED


def _claim(case: Case, fault: Fault, older: Execution, at: float) -> float:
    """Return the same of a claim, by then.

    A clock that jumps ahead ends claims at once: those that there are meanwhile, or that were
    made while it was behind. Older ones are renewed, or over, as at any time.
    """
    since, until = _lost_since(case, fault, older), min(at, over(fault))
    for clock in case.faults:
        is_clock = clock.kind is Kind.CLOCK or "clock" in clock.what
        if is_clock and clock.since <= until and since <= clock.until + case.claim_ttl:
            return 0.0
    return (_CLAIM_TRUSTED - _CLAIM_AGE) * case.claim_ttl


def _lasted(case: Case, fault: Fault, older: Execution, at: float) -> float:
    """Return for how long a fault had lasted by then, with those that it followed upon.

    It counts no more once it is over.
    """
    since = _lost_since(case, fault, older)
    return min(at, over(fault)) - since if fault.since < at else 0.0


def _lost_since(case: Case, fault: Fault, older: Execution) -> float:
    """Return since when nothing was renewed: a fault began, or one that it followed upon."""
    since = fault.since
    for before in sorted(case.faults, key=lambda each: each.since, reverse=True):
        follows = before.since < since <= over(before) + _RENEWED
        if before.kind in _LOSES_LEASES and before.met(older) and follows:
            since = before.since
    return since


def was_recorded(case: Case, due: tuple[str, str], before: float) -> bool:
    """Tell whether a process had heard by then that this is recorded, and nobody forgot it since.

    Who hears it may note it a moment late, and never too early.
    """
    at = next((at for at in reversed(case.recorded.get(due, ())) if at < before), None)
    return at is not None and not any(
        fault.kind is Kind.AMNESIA and fault.until >= at and fault.since <= before
        for fault in case.faults
    )


def explains(case: Case, first: Execution, second: Execution) -> bool:
    """Tell whether the faults are why an id had two outcomes, in this order."""
    if was_recorded(case, (first.handler, first.id), max(first.begin, second.begin)):
        return False
    return any(_explains(case, fault, first, second) for fault in case.faults)


def kill_of(case: Case, first: Execution, second: Execution) -> Fault | None:
    """Return the kill, or stop, that explains two outcomes of an id, the next one; None: none."""
    kills = (f for f in case.faults if f.kind in AT_ONCE and _explains(case, f, first, second))
    return min(kills, key=lambda kill: abs(kill.since - outcome_of(first)), default=None)


def age_at(faults: Sequence[Fault], first: Execution, kill: Fault) -> float:
    """Return for how long an outcome could have been recorded until the kill."""
    return kill.since - outcome_of(first) - _unable(faults, first, kill.since)


def explains_for_good(case: Case, first: Execution) -> bool:
    """Tell whether faults kept an outcome from being recorded, whoever came after it."""
    for fault in case.faults:
        match fault.kind:
            case Kind.KILL if _killed_at(fault, case.faults, first):
                return True
            case Kind.STOP if _stopped(case, fault, first):
                return True
            case Kind.PAUSE | Kind.CUT if _kept_away(case, fault, first, math.inf):
                return True
            case Kind.GONE if _gave_up(fault, case.faults, first) or _abandoned(case, fault, first):
                return True
    return False


def explains_fall(faults: Sequence[Fault], before: Execution, after: Execution) -> bool:
    """Tell whether the store forgot the fences in between, and its clock was not to be trusted.

    A store that is empty counts on from its clock. So a fence can fall where that is behind as the
    store is emptied, or was ahead while an earlier fence was given out.
    """
    emptied = [
        fault
        for fault in faults
        if fault.kind is Kind.AMNESIA and before.begin <= fault.until and fault.since <= after.begin
    ]
    clocks = [fault for fault in faults if fault.kind is Kind.CLOCK]
    return any(
        clock.since <= empty.until and (clock.until >= empty.since or clock.what.endswith("ahead"))
        for empty in emptied
        for clock in clocks
    )


def _explains(case: Case, fault: Fault, first: Execution, second: Execution) -> bool:
    match fault.kind:
        case Kind.KILL:
            return _killed_at(fault, case.faults, first) and fault.since < second.begin
        case Kind.STOP:
            return _stopped(case, fault, first) and fault.since < second.begin
        case Kind.PAUSE | Kind.CUT:
            older, newer = sorted((first, second), key=lambda e: e.fence)
            return older.fence < newer.fence and _kept_away(case, fault, older, newer.begin)
        case Kind.GONE:
            left = _gave_up(fault, case.faults, first) or _abandoned(case, fault, first)
            return left and fault.since < second.begin
        case Kind.AMNESIA:
            # What the broker knows to be done it delivers to nobody, forgotten or not.
            is_between = outcome_of(first) <= fault.until and second.begin >= fault.since
            again = first.id in case.published_again
            return is_between and (again or may_be_open(case, first, fault.since))
    return False


def _killed_at(fault: Fault, faults: Sequence[Fault], first: Execution) -> bool:
    """Tell whether its process was killed before it could record the outcome."""
    if not fault.met(first):  # first, as most are of others: what follows looks at all faults
        return False
    late = WINDOW + _unable(faults, first, fault.since)
    return fault.since - late <= outcome_of(first) <= gone_at(fault) + _DYING


def _stopped(case: Case, stop: Fault, first: Execution) -> bool:
    """Tell whether it had not ended when its process was told to stop, or was not to be recorded.

    Who stops records what is done, whatever it abandons. Its supervisor kills it half a second
    later, where it has not; so what ended long before has no excuse in that either. What waits for
    the broker is done when that confirms: what publishes, and what failed.
    """
    if not stop.met(first) or outcome_of(first) > gone_at(stop) + _DYING:
        return False
    waits = first.effect is None or first.handler in case.parents
    late = (WINDOW if waits else SLACK) + _unable(case.faults, first, stop.since)
    return first.end is None or first.end >= stop.since - late


def _gave_up(gone: Fault, faults: Sequence[Fault], first: Execution) -> bool:
    """Tell whether its process ended, as one whose supervisor is dead, before it could record it.

    It tries to until it ends, so it has to have been unable all the while.
    """
    if not gone.met(first) or outcome_of(first) > gone.until:
        return False
    unable = _unable(faults, first, gone.since)
    return unable > 0 and outcome_of(first) + unable >= gone.since - _LAST_TRY


def _abandoned(case: Case, gone: Fault, first: Execution) -> bool:
    """Tell whether its process, whose supervisor was dead, had given it up as it came to its end.

    The process ends right then: what its threads do meanwhile is recorded by nobody. What had
    returned before the end of the drain is recorded.
    """
    if not gone.met(first) or outcome_of(first) > gone.until:
        return False
    returned = math.inf if first.end is None else first.end + SLACK
    return any(
        kill.since + orphan_drain(case.lease_ttl) <= returned
        for kill in orphaned(first, gone, case.faults, case.lease_ttl)
    )


def _kept_away(case: Case, fault: Fault, older: Execution, at: float) -> bool:
    """Tell whether its process was paused or cut off before it could record the outcome.

    And for so long that another, who began it ``at`` that time, could have shard and claim by then.
    """
    struck = fault.since - WINDOW <= outcome_of(older) and older.begin <= fault.until
    if not (fault.met(older) and struck):
        return False
    return _lasted(case, fault, older, at) >= max(_lease(case), _claim(case, fault, older, at))


def _unable(faults: Iterable[Fault], first: Execution, until: float) -> float:
    """Return for how long after its effect it could not be recorded, up to ``until``.

    One trouble may follow upon another before it could.
    """
    since = reached = outcome_of(first)
    for fault in sorted(faults, key=lambda fault: fault.since):
        if fault.kind not in (Kind.OUTAGE, Kind.CUT, Kind.HANG) or not fault.met(first):
            continue
        ended = fault.until
        if fault.kind is Kind.HANG:
            ended = min(ended, fault.since + BROKER_WAIT)
        if fault.since - WINDOW <= reached <= ended:
            reached = ended
    return max(0.0, min(reached, until) - since)


def ended(execution: Execution, faults: Sequence[Fault], lease_ttl: float) -> float:
    """Return when it ended, or when it was broken off: after that its process did nothing."""
    if execution.end is not None:
        return execution.end
    broken_off = _broken_off(execution, faults, lease_ttl)
    struck = [max(at, execution.begin) for at in broken_off]
    return min(struck, default=execution.begin)


def is_broken_off(case: Case, execution: Execution) -> bool:
    """Tell whether a fault is why it has no end."""
    return any(True for _ in _broken_off(execution, case.faults, case.lease_ttl))


def _broken_off(execution: Execution, faults: Sequence[Fault], lease_ttl: float) -> Iterator[float]:
    """Yield when its process was killed, or did its last before it ended by itself."""
    for fault in faults:
        if not fault.met(execution):
            continue
        if fault.kind in AT_ONCE and execution.begin <= gone_at(fault) + _DYING:
            is_kill = fault.kind is Kind.KILL
            yield fault.since if is_kill else _last_seen(fault, execution, faults)
        elif fault.kind is Kind.GONE and execution.begin <= fault.until:
            yield from _died_of(fault, execution, faults, lease_ttl)


def _died_of(
    gone: Fault, execution: Execution, faults: Sequence[Fault], lease_ttl: float
) -> Iterator[float]:
    """Yield when its process did its last before it died of something else than a kill.

    A pause and a cut end no handler: who wakes up goes on. So only the death of the process is an
    excuse, during the fault or just after it; and who was cut off ran until then. So did who lost
    its supervisor, and ends by itself.
    """
    for _ in orphaned(execution, gone, faults, lease_ttl):
        yield gone.until
    for why in faults:
        if why.kind not in (Kind.PAUSE, Kind.CUT) or not why.met(execution):
            continue
        if why.since <= gone.until and gone.since <= why.until + _AFTERMATH:
            stood_still = why.kind is Kind.PAUSE and gone.until <= why.until
            yield why.since if stood_still else gone.until


def _last_seen(stop: Fault, execution: Execution, faults: Iterable[Fault]) -> float:
    """Return until when its process ran on that was told to stop, as far as that was seen."""
    gone = (f.since for f in faults if f.kind is Kind.GONE and f.met(execution))
    return max(stop.since, max((at for at in gone if at <= stop.until), default=stop.since))


def overlaps(
    executions: Sequence[Execution],
    group: Callable[[Execution], object],
    case: Case,
) -> Iterator[Pair]:
    """Yield the pairs of a group that ran at once; ``executions`` are in order of beginning."""
    faults, ttl = case.faults, case.lease_ttl
    for some in by(executions, group).values():
        running: list[Execution] = []
        for execution in some:
            running = [e for e in running if ended(e, faults, ttl) > execution.begin]
            for before in running:
                yield before, execution
            running.append(execution)


def by(
    executions: Sequence[Execution], group: Callable[[Execution], object]
) -> Mapping[object, list[Execution]]:
    """Return the executions of each group, in their order."""
    found = defaultdict[object, list[Execution]](list)
    for execution in executions:
        found[group(execution)].append(execution)
    return found
