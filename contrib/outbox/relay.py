"""Sends what is left in the outbox: of processes that died, or could not send.

A pass goes through all rows once, a batch after the other, up to the newest that there was when it
began, and under the horizon of then. So nothing in a later batch comes before something that an
earlier batch could not see yet: that was still open, and what depends on it has higher numbers.
A pass that leaves out a row it might have sent is over: a later batch has what is behind that row.
What the processes send themselves is left to them for a moment (``grace``). A lane that the broker
refuses rests, longer each time; the others go on.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING

from worker.contrib.outbox.postgres import whose
from worker.contrib.outbox.shipping import released, ship

from worker import QworkerError

if TYPE_CHECKING:
    from collections.abc import Callable
    from threading import Event

    from contrib.outbox.rows import Entry, OutboxStore
    from contrib.outbox.shipping import Shipment
    from worker import App

logger = logging.getLogger("worker.outbox")

#: Seconds after which a refused lane is tried again: at first, and at most.
_FIRST_REST, _LONGEST_REST = 1.0, 60.0
#: Resting lanes that a query leaves out; more are read and passed over.
_MOST_LEFT_OUT = 500
#: Seconds for which a transaction holds back rows before that is told.
_LONG = 10.0
#: Seconds between two looks at who has the lease; and the longest pause in an outage.
_LOOK, _LONGEST_PAUSE = 0.1, 5.0


@dataclass(slots=True)
class Pass:
    """What one pass came by."""

    #: Rows that were confirmed.
    sent: int = 0
    #: Lanes that the broker refuses, and lanes that wait for an open transaction.
    refused: int = 0
    held: int = 0
    #: Ended before it was through: somebody else has the lease, or the relay ends.
    is_cut: bool = False

    @property
    def is_last(self) -> bool:
        """Whether nothing is left to do, but for what is refused."""
        return not (self.sent or self.held or self.is_cut)


@dataclass(frozen=True, slots=True)
class _Rest:
    """A lane that was refused: until when it rests, and how long that is."""

    until: float
    length: float
    reason: str


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
        self._rests: dict[str, _Rest] = {}
        self._barrier: _Barrier | None = None
        self._trouble = ""

    def run(self, stop: Event, *, pause: float, burst: bool = False) -> Pass:
        """Make a pass every ``pause`` seconds until ``stop`` is set; return the last one.

        With ``burst`` until nothing is left but what is refused.
        """
        passed, waits = Pass(), pause
        while not stop.is_set():
            if not self._may_go_on():
                stop.wait(_LOOK)
                continue
            try:
                passed = self.turn()
            except QworkerError as error:
                self._miss(error)
                waits = min(2 * waits, max(pause, _LONGEST_PAUSE))
            else:
                self._recover()
                waits = pause
                if burst and passed.is_last:
                    break
            stop.wait(waits)
        return passed

    def turn(self) -> Pass:
        """Make one pass. Raises what the store, or the broker, raises."""
        until = self._newest()
        horizon, now = self._store.horizon(), self._clock()
        resting = {lane for lane, rest in self._rests.items() if rest.until > now}
        left_out = resting if len(resting) <= _MOST_LEFT_OUT else set()
        stopped, refused = {*resting}, {*resting}
        sent = after = 0
        while self._may_go_on():
            entries = self._store.read(self._batch, after=after, until=until, without=left_out)
            if not entries:
                held = len(stopped - refused)
                self._watch(horizon, held)
                return Pass(sent, len(refused), held)
            after = entries[-1].sequence
            ready = released(entries, horizon, stopped)
            shipment = ship(self._app, ready, self._may_go_on)
            if shipment.sent:
                self._store.remove(shipment.sent)
            sent += len(shipment.sent)
            refused |= self._settle(ready, shipment)
            stopped |= refused
            if shipment.trouble is not None:
                raise shipment.trouble
            if shipment.is_cut:  # also where the lease is back by now
                break
        return Pass(sent, len(refused), len(stopped - refused), is_cut=True)

    def _newest(self) -> int:
        """Return the newest row that is old enough to be sent."""
        now = self._clock()
        self._seen.append((now, self._store.newest()))
        while self._seen and self._seen[0][0] <= now - self._grace:
            self._old = self._seen.popleft()[1]
        return self._old

    def _settle(self, entries: list[Entry], shipment: Shipment) -> set[str]:
        """Let lanes rest that were refused, and forget that of those that got through."""
        sent = {*shipment.sent}
        through = {entry.lane for entry in entries if entry.sequence in sent}
        for lane in through & self._rests.keys():
            del self._rests[lane]
        for entry, reason in shipment.refused:
            before = self._rests.get(entry.lane)
            length = _FIRST_REST if before is None else min(2 * before.length, _LONGEST_REST)
            self._rests[entry.lane] = _Rest(self._clock() + length, length, reason)
            if before is None or before.reason != reason:
                name = entry.outgoing.properties["type"]
                logger.warning(
                    "row %d of the outbox, a %s, is refused, and what its key has behind it waits:"
                    " %s; it is tried again until it is through, or somebody removes that row",
                    entry.sequence,
                    name,
                    reason,
                    extra={"message_id": entry.outgoing.message_id},
                )
        return {entry.lane for entry, _ in shipment.refused}

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

    def _miss(self, error: QworkerError) -> None:
        text = f"{type(error).__name__}: {error}"
        if text != self._trouble:
            logger.warning("nothing is sent until this is over: %s", error)
        self._trouble = text

    def _recover(self) -> None:
        if self._trouble:
            logger.info("messages are sent again")
        self._trouble = ""
