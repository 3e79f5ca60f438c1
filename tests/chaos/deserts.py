"""What may lie aside: by order, behind it, or since its process died with it too often.

A runtime that set everything aside would lose nothing. So each dead letter and each parked message
needs a reason that the test knows of, whatever the runtime wrote on it:

* it was ordered to fail for good (``Case.hopeless``);
* its key is parked, by one that was ordered to fail at a handler that parks keys, and it came
  behind that one, or is a copy of what is done (:mod:`chaos.accounting` judges copies);
* its process died, or was away from the store, ``Case.crash_limit`` times while it may have had the
  message: in one of its runs, or while it claimed what comes next of that shard.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from chaos.excuses import WINDOW, ended
from chaos.executions import Execution, Fault, Kind, gone_at, outcome_of

if TYPE_CHECKING:
    from chaos.checker import Case

#: What takes a claim from a process that has not ended what it claimed.
_CRASHES = (Kind.KILL, Kind.GONE, Kind.PAUSE, Kind.CUT, Kind.OUTAGE, Kind.CLOCK)
#: Seconds before a fault in which a process that began something of a shard may have claimed more
#: of it, which is not begun.
_AHEAD = 2.0


class Deserts:
    """What of a case is aside for a reason. ``executions`` are all of the case."""

    def __init__(self, case: Case, executions: Sequence[Execution]) -> None:
        self._case = case
        self._hopeless = {*case.hopeless}
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
            is_due = (handler, id_) in self._hopeless
            if not is_due and self._crashes(handler, id_) < max(1, self._case.crash_limit):
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

    def _crashes(self, handler: str, id_: str) -> int:
        """Return how often a process may have died, or lost its claims, while it had this."""
        mine = [e for e in self._runs[id_] if handler in ("", e.handler)]
        shards = {e.shard for e in self._runs[id_]}
        key, _ = self._place(id_)
        if not shards and key in self._shards:
            shards = {self._shards[key]}
        near = [e for shard in shards for e in self._of_shard[shard]]
        killed = {pid for f in self._case.faults if f.kind is Kind.KILL for pid in f.pids or ()}
        return sum(
            any(self._struck(fault, e) for e in mine) or any(_is_ahead(fault, e) for e in near)
            for fault in self._case.faults
            if fault.kind in _CRASHES
            # Who was killed is also gone, of the same cause.
            if not (fault.kind is Kind.GONE and killed.issuperset(fault.pids or ()))
        )

    def _struck(self, fault: Fault, run: Execution) -> bool:
        """Tell whether a fault met a process between the claim of this run and its record."""
        last = max(ended(run, self._case.faults), outcome_of(run)) + WINDOW
        return fault.met(run) and run.begin - WINDOW <= gone_at(fault) and fault.since <= last

    def _place(self, id_: str) -> tuple[str, int]:
        return self._case.published.get(id_, ("", -1))


def _is_ahead(fault: Fault, run: Execution) -> bool:
    return fault.met(run) and fault.since - _AHEAD <= run.begin <= fault.since
