"""Where everything went: done, dead or parked for a reason; nothing both, nothing past the parked.

A *dead letter* is of one handler (or of all, where it reached none), and is recorded as done. What
is *parked* lies there for every handler that has not done it, since it returns to all of them; and
a parked key stands still: nothing of it runs any more, until a replay that no trial makes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from chaos.acknowledging import PUBLISHED, may_be_open
from chaos.deserts import Deserts
from chaos.excuses import explains, explains_for_good
from chaos.executions import Execution, Kind, effect_of, gone_at
from chaos.findings import Findings

if TYPE_CHECKING:
    from chaos.checker import Case

#: After what the broker delivers something once more that was recorded as done, where it had no
#: acknowledgement by then. Those of the store keep nobody from the broker.
_DELIVERED_TWICE = (
    Kind.KILL, Kind.STOP, Kind.GONE, Kind.PAUSE, Kind.LAPSE, Kind.CUT, Kind.HANG, Kind.BROKER,
)  # fmt: skip
#: What makes an embedded broker refuse messages; and the seconds after which they are sent again,
#: at the most (worker/detour.py).
_REFUSING, _AGAIN = "disk-full", 30.0


class Accounts:
    """What became of everything in a case."""

    def __init__(self, case: Case, effects: Sequence[Execution]) -> None:
        self._case = case
        self._effects = effects
        self._done = {(e.handler, e.id) for e in effects}
        self._dead = {*case.set_aside}
        self._culprits = {*case.parked}
        self._parked = {id_ for _, id_ in case.parked}
        #: The ids that are dead for every handler, since they reached none.
        self._whole = {id_ for handler, id_ in case.set_aside if not handler}
        self._handlers = defaultdict[str, set[str]](set)
        for handler, id_ in case.wanted:
            self._handlers[id_].add(handler)
        self._unordered = {*case.unordered}
        self._deserts = Deserts(case, case.executions)
        self._failed = defaultdict[tuple[str, str], list[Execution]](list)
        for each in case.executions:
            if each.effect is None and each.end is not None:
                self._failed[each.handler, each.id].append(each)

    def check(self, found: Findings) -> None:
        """Add what is wrong: lost, aside for no reason, or though it is done, or in no order."""
        found.undeserved = sorted(self._deserts.without_reason(self._done))
        missing = (due for due in self._case.wanted if due not in self._done and not self.lies(due))
        found.lost = sorted(" ".join(due) for due in missing)
        found.past_parked = [*self._past_parked()]
        judged = {id(effect) for effect, _ in found.past_parked}
        both = (e for e in self._effects if self._is_both(e, judged=id(e) in judged))
        found.twofold = sorted(both, key=effect_of)
        found.parked_in_no_order = [*self._in_no_order()]

    def lies(self, due: tuple[str, str]) -> bool:
        """Tell whether handler and id are accounted for without an effect."""
        return due in self._dead or due[1] in self._whole or due[1] in self._parked

    # -- done, and set aside

    def _is_both(self, effect: Execution, *, judged: bool) -> bool:
        """Tell whether an effect is of something set aside too, and nothing explains that.

        ``judged``: it is behind what is parked, of which is told elsewhere.
        """
        due = effect.handler, effect.id
        if due in self._dead or effect.id in self._whole or due in self._culprits:
            return not self._is_explained(effect)
        if effect.id not in self._parked or judged or self._open_handlers(effect.id):
            return False  # it is parked for those that have yet to do it
        return effect.id in self._handlers and not self._is_copy(effect)

    def _is_explained(self, effect: Execution) -> bool:
        """Tell whether a fault is why something was done and set aside, in whatever order.

        As for a second effect: of two owners the first could not record what became of it. Either
        it had the effect, and the second one set it aside; or it set it aside, and the second one,
        which began later, had the effect. On the transactional tier too: the memory in the
        transaction is looked at by the handler, which a message that crashed the worker too often
        does not reach any more. Nobody calls the handler then, so no execution tells of that.
        """
        for other in self._failed[effect.handler, effect.id]:
            pair = (effect, other) if other.begin > effect.begin else (other, effect)
            if explains(self._case, *pair):
                return True
        return explains_for_good(self._case, effect)

    def _is_copy(self, effect: Execution) -> bool:
        """Tell whether what is parked of it may be a copy, as nothing keeps a key from having some.

        What comes of a parked key is parked without asking whether it is done: a replay finds that
        out. So something that came twice, the second time behind the message that parked the key,
        is done and parked. It comes twice where it was published twice, or where a fault met its
        process, or everybody, after its effect and before the broker had its acknowledgement, which
        may take long (:mod:`chaos.acknowledging`). And where it was sent while the number of shards
        changed: for a time both generations of queues are bound.
        """
        sent = self._case.sent.get(effect.id, effect.begin)
        if any(since - PUBLISHED <= sent <= until for since, until in self._case.changes):
            return True
        return effect.id in self._case.published_again or any(
            fault.kind in _DELIVERED_TWICE
            and fault.met(effect)
            and gone_at(fault) >= effect_of(effect)
            and may_be_open(self._case, effect, fault.since)
            for fault in self._case.faults
        )

    # -- parked keys

    def _past_parked(self) -> Iterator[tuple[Execution, str]]:
        """Yield the effects of parked keys behind what is parked and not done, and what that is.

        Nothing explains them, whoever dies or sleeps: the store knows that a key is parked before
        the broker hears that the message is taken, and until then that comes again, first. Nor does
        a store that forgot everything, as it is made to here: then the parked queue is read before
        anything begins (docs/reliability.md).
        """
        firsts = self._first_parked()
        for effect in self._effects:
            first = firsts.get((effect.handler, effect.key))
            if first is not None and effect.sequence > first:
                yield effect, f"{effect.key}#{first} is parked"

    def _first_parked(self) -> dict[tuple[str, str], int]:
        """Return for a handler and key the first place that is parked, and neither done nor dead.

        Another handler of the key, which had done that, or has nothing to do with it, may have gone
        on before the key was parked: a retry holds back the handler that it is of. Of what was
        never confirmed it is not known whose it is.
        """
        firsts: dict[tuple[str, str], int] = {}
        for id_ in self._parked:
            key, sequence = self._case.published.get(id_, ("", -1))
            for handler in self._open_handlers(id_) - self._unordered:
                if sequence >= 0:
                    place = handler, key
                    firsts[place] = min(sequence, firsts.get(place, sequence))
        return firsts

    def _in_no_order(self) -> Iterator[str]:
        """Yield what would return before something of its key that came before it.

        The first time that an id lies there counts: who died before it could acknowledge what it
        parked had it parked once more, behind that. What is done returns to nobody.
        """
        last = defaultdict[str, int](lambda: -1)
        seen = set[str]()
        for _, id_ in self._case.parked:
            key, sequence = self._case.published.get(id_, ("", -1))
            if id_ in seen or sequence < 0 or not self._open_handlers(id_) - self._unordered:
                continue
            seen.add(id_)
            if sequence < last[key] and not self._was_refused(key):
                yield f"{key}#{sequence} behind #{last[key]}: {id_}"
            last[key] = max(last[key], sequence)

    def _open_handlers(self, id_: str) -> set[str]:
        """Return the handlers that have yet to do an id; none where it was never confirmed."""
        if id_ in self._whole:
            return set()
        mine = self._handlers.get(id_, ())
        return {h for h in mine if (h, id_) not in self._done and (h, id_) not in self._dead}

    def _was_refused(self, key: str) -> bool:
        """Tell whether somebody died who had parked behind what the parked queue refused of a key.

        What it refuses is sent again later, in its old place; but its process may die before that
        (docs/reliability.md). Only who has the shard of a key parks anything of it.
        """
        case = self._case
        shards = {e.shard for e in case.executions if e.key == key}
        owners = {e.pid for e in case.executions if e.shard in shards}
        refusals = [fault for fault in case.faults if fault.what == _REFUSING]
        return any(
            refusal.since <= death.since <= refusal.until + _AGAIN
            for death in case.faults
            if death.kind in (Kind.KILL, Kind.STOP, Kind.GONE)
            and not owners.isdisjoint(death.pids or ())
            for refusal in refusals
        )
