"""Processes that have lost their supervisor: until when they know of it, and are gone.

An orphan drains and ends. It knows of that as soon as its loop comes round, which trouble may keep
from that; from then on it begins nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from chaos.executions import Execution, Fault, Kind, gone_at

#: Seconds until the loop of a process has come round, at most: it is the one that records what is
#: done (:data:`chaos.excuses.WINDOW`).
_ROUND = 1.0
#: Seconds for which a process waits for a broker that hangs, at most, before it gives it up; while
#: it waits it records nothing (docs/reliability.md).
BROKER_WAIT = 15.0
#: Seconds after a cut in which a process still waits for an answer to what it asked in its midst
#: (dedup_timeout): until then nothing is renewed.
_STORE_WAIT = 2.0
#: Seconds for which a process drains whose supervisor is dead, at most, and the share of the length
#: of its leases (worker/supervisor/child.py). Then it ends, and leaves a handler that takes longer;
#: and what it may take for that, also where it hangs.
_ORPHAN_DRAIN, _ORPHAN_SHARE = 8.0, 0.8
_ORPHAN_EXIT, _ORPHAN_EXIT_SHARE = 1.5, 0.15
#: Seconds for which trouble keeps the loop of a process from looking whether its supervisor lives:
#: the loop stands still with its process, or waits for an answer.
_HOLDS_UP = {
    Kind.PAUSE: math.inf,
    Kind.HANG: BROKER_WAIT,
    Kind.CUT: _STORE_WAIT,
    Kind.OUTAGE: _STORE_WAIT,
}


def over(fault: Fault) -> float:
    """Return when all is renewed again that there is."""
    return fault.until + (_STORE_WAIT if fault.kind is Kind.CUT else 0.0)


def orphaned(
    execution: Execution, gone: Fault, faults: Sequence[Fault], lease_ttl: float
) -> Iterator[Fault]:
    """Yield the kill of the supervisor of its process, where that ended of it, as it should.

    It drains as soon as it knows, so it begins nothing later, and is gone soon.
    """
    exits = min(_ORPHAN_EXIT, _ORPHAN_EXIT_SHARE * lease_ttl)
    for kill in faults:
        if kill.kind is Kind.KILL and execution.life in (kill.pids or ()):
            known = _known(kill, execution, faults)
            is_gone_in_time = gone.since <= known + orphan_drain(lease_ttl) + exits
            if kill.since <= gone.until and is_gone_in_time and execution.begin <= known:
                yield kill


def orphan_drain(lease_ttl: float) -> float:
    """Return for how long it drains."""
    return min(_ORPHAN_DRAIN, _ORPHAN_SHARE * lease_ttl)


def _known(kill: Fault, execution: Execution, faults: Sequence[Fault]) -> float:
    """Return when its process knows at the latest that its supervisor was killed.

    The loop that sees it is that which records, and takes no longer for it; but trouble may hold
    it up.
    """
    reached = gone_at(kill)
    for fault in sorted(faults, key=lambda each: each.since):
        longest = _HOLDS_UP.get(fault.kind)
        if longest is None or not fault.met(execution):
            continue
        if fault.since - _ROUND <= reached <= over(fault):
            reached = min(over(fault), reached + longest)
    return reached + _ROUND
