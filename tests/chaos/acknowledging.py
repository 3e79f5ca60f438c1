"""Until when the broker may not know that a message is done: so long it may deliver it once more.

What is recorded is acknowledged with the next round, up to the first gap of its shard: what came
before it and is not done holds its acknowledgement up, and so do the other handlers of its event.
Trouble with store or broker does too, and the death of the process, until somebody has the message
again and finds that it is done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from chaos.executions import Execution, Fault, Kind, gone_at, outcome_of

if TYPE_CHECKING:
    from chaos.checker import Case

#: What keeps a record, or an acknowledgement, from those that it is for.
_KEEPS = (Kind.PAUSE, Kind.CUT, Kind.OUTAGE, Kind.HANG, Kind.BROKER, Kind.LAPSE)
_ENDS = (Kind.KILL, Kind.STOP, Kind.GONE)
#: Seconds from an outcome, or the end of a trouble, to the acknowledgement, at most.
_SOON = 2.0
#: Seconds after the death of a process in which another has what it left, at most: its lease ends,
#: it is started again, and what was before it is done.
_TAKEN_OVER = 30.0
#: Seconds by which messages may come to their queue in another order than they were sent.
PUBLISHED = 1.0


def may_be_open(case: Case, execution: Execution, at: float) -> bool:
    """Tell whether the message of an execution may not be acknowledged yet, at a later time."""
    return at <= _held_up(case, execution) + _SOON or _is_behind_a_gap(case, execution, at - _SOON)


def _held_up(case: Case, execution: Execution) -> float:
    """Return until when faults, one after the other, kept it from being acknowledged."""
    reached = outcome_of(execution)
    for fault in sorted(case.faults, key=lambda each: each.since):
        if not fault.met(execution) or fault.since > reached + _SOON:
            continue
        if fault.kind in _KEEPS or (fault.kind in _ENDS and gone_at(fault) >= reached - _SOON):
            reached = max(reached, _over(fault))
    return reached


def _over(fault: Fault) -> float:
    return fault.since + _TAKEN_OVER if fault.kind in _ENDS else fault.until


def _is_behind_a_gap(case: Case, execution: Execution, at: float) -> bool:
    """Tell whether something that was sent before it, to the same shard, was not done by then.

    What was done by then and once more later held up nothing; what never succeeded did, until it
    was given up.
    """
    sent = case.sent.get(execution.id, execution.begin) + PUBLISHED
    own = execution.handler, execution.id
    first, last = dict[tuple[str, str], float](), dict[tuple[str, str], float]()
    for other in case.executions:
        due = other.handler, other.id
        is_before = case.sent.get(other.id, other.begin) <= sent
        if not is_before or other.shard != execution.shard or due == own:
            continue
        end = outcome_of(other)
        last[due] = max(end, last.get(due, end))
        if other.effect is not None:
            first[due] = min(end, first.get(due, end))
    return any(end >= at for end in (last | first).values())
