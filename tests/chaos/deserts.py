"""What may lie aside: by order, behind it, or since its process died with it too often.

A runtime that set everything aside would lose nothing. So each dead letter and each parked message
needs a reason that the test knows of, whatever the runtime wrote on it:

* it was ordered to fail for good (``Case.hopeless``);
* its key is parked, by one that was ordered to fail at a handler that parks keys, and it came
  behind that one, or is a copy of what is done (:mod:`chaos.accounting` judges copies);
* its letter says that it crashed the worker, and its process died, or was away from the store,
  ``Case.crash_limit`` times while it may have had the message: in one of its runs, or while it
  claimed what comes next of that shard.

A process has nothing of a message that was not sent yet. It is away where it is paused, cut off, or
where the store does not answer, and loses a claim only where that lasts, one after the other, for
what the claim has left to live. Who loses its lease meanwhile loses no claim by that: it renews
those of handlers that run, and gives back what it does not begin. A clock of the store that jumps
ahead ends all claims at once; and those that are made by it live their full time, so that nothing
shorter ends them. One that was set back jumps ahead as it is healed.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from chaos.excuses import WINDOW, ended
from chaos.executions import Execution, Fault, Kind, gone_at, outcome_of

if TYPE_CHECKING:
    from chaos.checker import Case

#: What a letter says that is aside for the deaths of its process (worker/dispatch.py).
_CRASHED = "crashed the worker"
#: What ends the claims of a process at once: its death.
_DEATHS = (Kind.KILL, Kind.GONE)
#: What keeps it from renewing them; and the seconds after it until it does so again, at most: who
#: was cut off still waits for an answer (dedup_timeout), and who was refused, for its next try
#: (worker/dialogue.py).
_ABSENCES: Mapping[Kind, float] = {Kind.PAUSE: 0.0, Kind.CUT: 2.0, Kind.OUTAGE: 1.0}
#: Seconds between two absences in which nothing may have been renewed, on a busy machine.
_BETWEEN = 1.0
#: The share of its length that a claim has left at least when an absence begins. It is renewed
#: once it is half as old as it may get (worker/dialogue.py), and on a busy machine a moment later.
_LEFT = 0.45
#: Seconds before a fault in which a process that began something of a shard may have claimed more
#: of it, which is not begun.
_AHEAD = 2.0


class Deserts:
    """What of a case is aside for a reason. ``executions`` are all of the case."""

    def __init__(self, case: Case, executions: Sequence[Execution]) -> None:
        self._case = case
        self._hopeless = {*case.hopeless}
        absences = [fault for fault in case.faults if fault.kind in _ABSENCES]
        self._absences = sorted(absences, key=lambda fault: fault.since, reverse=True)
        self._runs = defaultdict[str, list[Execution]](list)
        self._of_shard = defaultdict[int, list[Execution]](list)
        self._shards = dict[str, int]()
        for each in executions:
            self._runs[each.id].append(each)
            self._of_shard[each.shard].append(each)
            self._shards[each.key] = each.shard
        #: The first place of each key at which it may be parked.
        self._parks = dict[str, int]()
        for handler, id_ in {*case.parked} & self._hopeless:
            key, sequence = self._place(id_)
            if handler in case.parking and sequence >= 0:
                self._parks[key] = min(sequence, self._parks.get(key, sequence))

    def without_reason(self, done: set[tuple[str, str]]) -> Iterator[str]:
        """Yield what nothing is the reason of; ``done`` are the effects, by handler and id."""
        for handler, id_ in dict.fromkeys(self._case.set_aside):
            if (handler, id_) not in self._hopeless and not self._is_crash(handler, id_):
                yield f"dead letter of {handler or 'all handlers'}: {id_}"
        for handler, id_ in dict.fromkeys(self._case.parked):
            if not self._may_park(handler, id_, done):
                yield f"parked by {handler or 'an earlier one of its key'}: {id_}"

    def _may_park(self, handler: str, id_: str, done: set[tuple[str, str]]) -> bool:
        if handler:
            return handler in self._case.parking and (handler, id_) in self._hopeless
        key, sequence = self._place(id_)
        if key in self._parks and sequence >= self._parks[key]:
            return True
        mine = [due for due in self._case.wanted if due[1] == id_]
        return key in self._parks and all(due in done for due in mine)

    def _is_crash(self, handler: str, id_: str) -> bool:
        """Tell whether a letter says that it crashed the worker, and that may be so."""
        says = self._case.reasons.get((handler, id_), "")
        often = max(1, self._case.crash_limit)
        return says.startswith(_CRASHED) and self._crashes(handler, id_) >= often

    def _crashes(self, handler: str, id_: str) -> int:
        """Return how often a process may have died, or lost its claims, while it had this."""
        mine = [e for e in self._runs[id_] if handler in ("", e.handler)]
        shards = {e.shard for e in self._runs[id_]}
        key, _ = self._place(id_)
        if not shards and key in self._shards:
            shards = {self._shards[key]}
        near = [e for shard in shards for e in self._of_shard[shard]]
        sent = self._case.sent.get(id_, self._case.children.get(id_, -math.inf))
        killed = {pid for f in self._case.faults if f.kind is Kind.KILL for pid in f.pids or ()}
        return sum(
            any(self._struck(fault, e) and self._ends_claims(fault, e, sent) for e in mine)
            or any(self._is_ahead(fault, e) and self._ends_claims(fault, e, sent) for e in near)
            for fault in self._case.faults
            # Who was killed is also gone, of the same cause.
            if not (fault.kind is Kind.GONE and killed.issuperset(fault.pids or ()))
        )

    def _ends_claims(self, fault: Fault, run: Execution, sent: float) -> bool:
        """Tell whether it may end a claim of what was sent then, of the process of a run."""
        if fault.kind in _ABSENCES:
            since = max(self._since(fault, run), sent)
            away = fault.until + _ABSENCES[fault.kind] - since
            return away >= _LEFT * self._case.claim_ttl
        return (fault.kind in _DEATHS or _is_clock(fault)) and gone_at(fault) >= sent

    def _since(self, fault: Fault, run: Execution) -> float:
        """Return since when its process was away, where one absence follows upon another."""
        since = fault.since
        if fault.kind in _ABSENCES:
            for before in self._absences:
                over = before.until + _ABSENCES[before.kind] + _BETWEEN
                if before.since < since <= over and before.met(run):
                    since = before.since
        return since

    def _struck(self, fault: Fault, run: Execution) -> bool:
        """Tell whether a fault met a process between the claim of this run and its record."""
        if not fault.met(run) or run.begin - WINDOW > gone_at(fault):
            return False
        last = max(ended(run, self._case.faults, self._case.lease_ttl), outcome_of(run)) + WINDOW
        return self._since(fault, run) <= last

    def _is_ahead(self, fault: Fault, run: Execution) -> bool:
        """Tell whether the process of a run may have claimed what comes next when a fault came."""
        last = gone_at(fault) if _is_clock(fault) else fault.since
        return (
            fault.met(run) and run.begin <= last and self._since(fault, run) - _AHEAD <= run.begin
        )

    def _place(self, id_: str) -> tuple[str, int]:
        return self._case.published.get(id_, ("", -1))


def _is_clock(fault: Fault) -> bool:
    """Tell whether it is the clock that claims go by: that of one supervisor alone is not."""
    return fault.kind is Kind.CLOCK or ("clock" in fault.what and not fault.supervisor)
