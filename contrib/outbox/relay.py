"""Sends what is left in the outbox: of processes that died, or could not send.

A pass goes through all rows once, a batch after the other, up to the newest that there was when it
began, and under the horizon of then. So nothing in a later batch comes before something that an
earlier batch could not see yet: that was still open, and what depends on it has higher numbers.
A pass that leaves out a row it might have sent is over: a later batch has what is behind that row.
What the processes send themselves is left to them for a moment (``grace``). A lane that the broker
refuses rests, longer each time; the others go on. Those of which it is not known who keeps whom
from being confirmed are sent at the end of the pass, one at a time (:mod:`.resting`).
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING

from worker.contrib.outbox.postgres import whose
from worker.contrib.outbox.resting import Rests
from worker.contrib.outbox.rows import Bounds
from worker.contrib.outbox.shipping import released, ship

if TYPE_CHECKING:
    from collections.abc import Callable

    from contrib.outbox.rows import Entry, OutboxStore
    from contrib.outbox.shipping import Refusal, Shipment
    from worker import App

logger = logging.getLogger("worker.outbox")

#: Lanes that a query leaves out, of those that are not sent; more are read and passed over.
_MOST_LEFT_OUT = 500
#: Seconds for which a transaction holds back rows before that is told.
_LONG = 10.0


@dataclass(slots=True)
class Pass:
    """What one pass came by."""

    #: Rows that were confirmed.
    sent: int = 0
    #: Lanes that the broker refuses, and lanes that wait for an open transaction.
    refused: int = 0
    held: int = 0
    #: Those of the refused ones that are still to be sent apart, for the first time.
    doubted: int = 0
    #: Ended before it was through: somebody else has the lease, or the relay ends.
    is_cut: bool = False

    @property
    def is_last(self) -> bool:
        """Whether nothing is left to do, but for what is refused."""
        return not (self.sent or self.held or self.doubted or self.is_cut)


@dataclass(slots=True)
class _Barrier:
    """The first open transaction that may have written rows, and holds back newer ones."""

    transaction: int
    since: float
    is_told: bool = False


class Relay:
    """Sends the rows of ``store`` as messages of ``app``. For one thread.

    ``may_go_on`` tells whether this process has the lease; ``grace`` is how many seconds old a row
    is, at least; ``batch`` how many rows are read at once.
    """

    def __init__(  # noqa: PLR0913 - what a relay is made of
        self,
        app: App,
        store: OutboxStore,
        may_go_on: Callable[[], bool] = lambda: True,
        *,
        batch: int = 200,
        grace: float = 1.0,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._app = app
        self._store = store
        self._may_go_on = may_go_on
        self._batch = batch
        self._grace = grace
        self._clock = clock
        #: When which row was the newest, and the newest that is old enough by now.
        self._seen: deque[tuple[float, int]] = deque()
        self._old = 0
        self._rests = Rests()
        self._barrier: _Barrier | None = None

    def turn(self) -> Pass:
        """Make one pass. Raises what the store, or the broker, raises."""
        until = self._newest()
        horizon, now = self._store.horizon(), self._clock()
        quiet = self._rests.quiet(now)
        left_out = quiet if len(quiet) <= _MOST_LEFT_OUT else set()
        stopped, refused = {*quiet}, {*quiet}
        held: set[str] = set()
        passed, after = Pass(), 0
        while True:
            # Once it is cut it is over, also where the lease is back by now.
            passed.is_cut = passed.is_cut or not self._may_go_on()
            if passed.is_cut:
                held = stopped - refused
                break
            entries = self._store.read(self._batch, Bounds(after, until, without=left_out))
            if not entries:
                held = (stopped - refused) | self._send_apart(until, horizon, passed)
                refused &= self._rests.lanes
                break
            after = entries[-1].sequence
            refused |= self._send(released(entries, horizon, stopped), passed)
            stopped |= refused
        passed.refused, passed.held, passed.doubted = len(refused), len(held), self._rests.doubted
        if not passed.is_cut:
            self._watch(horizon, passed.held)
        return passed

    def _send(self, ready: list[Entry], passed: Pass) -> set[str]:
        """Send rows and remove them; return the lanes that were refused. Raises their trouble."""
        shipment = ship(self._app, ready, self._may_go_on)
        if shipment.sent:
            self._store.remove(shipment.sent)
        passed.sent += len(shipment.sent)
        passed.is_cut |= shipment.is_cut
        self._settle(ready, shipment)
        if shipment.trouble is not None:
            raise shipment.trouble
        return {refusal.entry.lane for refusal in shipment.refused}

    def _send_apart(self, until: int, horizon: int | None, passed: Pass) -> set[str]:
        """Send lanes one at a time whose turn it is; return those that the horizon holds.

        One that is not confirmed ends it: that took long, and all others wait meanwhile.
        """
        held: set[str] = set()
        for lane in self._rests.due(self._clock()):
            if not self._may_go_on():
                passed.is_cut = True
            if passed.is_cut:
                break
            entries = self._store.read(self._batch, Bounds(until=until, lanes=[lane]))
            if not entries:  # somebody has removed its rows
                self._rests.end([lane])
            ready = released(entries, horizon, held)
            if ready and self._send(ready, passed):
                break
        return held

    def _newest(self) -> int:
        """Return the newest row that is old enough to be sent."""
        now = self._clock()
        self._seen.append((now, self._store.newest()))
        while self._seen and self._seen[0][0] <= now - self._grace:
            self._old = self._seen.popleft()[1]
        return self._old

    def _settle(self, entries: list[Entry], shipment: Shipment) -> None:
        """Let lanes rest that were refused, and forget that of those that got through."""
        sent, now = {*shipment.sent}, self._clock()
        self._rests.end(entry.lane for entry in entries if entry.sequence in sent)
        doubtful = [refusal for refusal in shipment.refused if not refusal.is_certain]
        if len(doubtful) > 1:
            self._rests.doubt(doubtful, now)
            logger.warning(
                "%d rows of the outbox were not confirmed together: %s; their keys are sent one at"
                " a time, to find out which one it is",
                len(doubtful),
                doubtful[0].reason,
            )
        for refusal in shipment.refused:
            is_one_of_many = len(doubtful) > 1 and not refusal.is_certain
            if not is_one_of_many and self._rests.refuse(refusal, now):
                _tell(refusal)

    def _watch(self, horizon: int | None, held: int) -> None:
        """Tell once which transaction holds back rows for long, and when it is over."""
        now, barrier = self._clock(), self._barrier
        if not held or horizon is None:
            self._barrier = None
        elif barrier is None or barrier.transaction != horizon:
            self._barrier = _Barrier(horizon, now)
        elif not barrier.is_told and now - barrier.since >= _LONG:
            barrier.is_told = True
            logger.warning(
                "%d keys of the outbox wait for transaction %d of the database, which may have"
                " written older rows, and has not ended for %.0f seconds: %s",
                held,
                horizon,
                now - barrier.since,
                whose(horizon),
            )
        if barrier is not None and barrier.is_told and barrier is not self._barrier:
            logger.info("transaction %d holds back nothing any more", barrier.transaction)


def _tell(refusal: Refusal) -> None:
    outgoing = refusal.entry.outgoing
    logger.warning(
        "row %d of the outbox, a %s, is refused, and what its key has behind it waits: %s; it is"
        " tried again until it is through, or somebody removes that row",
        refusal.entry.sequence,
        "message" if outgoing is None else outgoing.properties["type"],
        refusal.reason,
        extra={"message_id": refusal.entry.message_id if outgoing is None else outgoing.message_id},
    )
