"""How long a relay goes on: until it is asked to end, or until nothing is left.

Who does not have the lease makes no pass. A standing relay waits for it. A burst waits for what the
one that has it sends, as far as that gets on: rows that the broker refuses there would keep it for
ever.
"""

from __future__ import annotations

import logging
from time import monotonic
from typing import TYPE_CHECKING

from worker.contrib.outbox.rows import Bounds, OutboxUnavailable

from worker import QworkerError

if TYPE_CHECKING:
    from collections.abc import Callable
    from threading import Event

    from contrib.outbox.relay import Relay
    from contrib.outbox.rows import OutboxStore

logger = logging.getLogger("worker.outbox")

#: Seconds between two looks at who has the lease; and the longest pause in an outage.
_LOOK, _LONGEST_PAUSE = 0.1, 5.0


class Loop:
    """Has ``relay`` make passes, ``pause`` seconds apart, until ``stop`` is set. For one thread.

    ``may_go_on`` tells whether this process has the lease.
    """

    def __init__(  # noqa: PLR0913 - what a loop is made of
        self,
        relay: Relay,
        store: OutboxStore,
        may_go_on: Callable[[], bool],
        stop: Event,
        *,
        pause: float,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._relay = relay
        self._store = store
        self._may_go_on = may_go_on
        self._stop = stop
        self._pause = pause
        self._clock = clock
        #: What failed last; told once.
        self._trouble = ""

    def stand(self) -> None:
        """Go on until ``stop`` is set, through outages of the broker and the database."""
        waits, is_silent = self._pause, False
        while not self._stop.is_set():
            if not (self._may_go_on() or is_silent):
                self._stop.wait(_LOOK)
                continue
            try:
                if not self._may_go_on():
                    self._store.newest()  # who has no database is not given the lease: is it back?
                    is_silent = False
                    continue
                self._relay.turn()
            except QworkerError as error:
                is_silent = isinstance(error, OutboxUnavailable)
                self._miss(error)
                waits = min(2 * waits, max(self._pause, _LONGEST_PAUSE))
            else:
                self._recover()
                waits = self._pause
            self._stop.wait(waits)

    def burst(self, patience: float) -> bool:
        """Go on until nothing is left but what the broker refuses; tell whether nothing is.

        Where another relay has the lease, until it has sent what there was, or has not got on for
        ``patience`` seconds. Raises OutboxUnavailable where the database has not answered for as
        long, and at once what else a pass raises: whoever waits for the end is told.
        """
        another, answered, waits = self._another(patience), self._clock(), self._pause
        while not self._stop.is_set():
            try:
                if self._may_go_on():
                    passed, another = self._relay.turn(), self._another(patience)
                    if passed.is_last:
                        return not passed.refused
                elif (is_empty := another.look()) is not None:
                    return is_empty
            except OutboxUnavailable as error:
                if self._clock() - answered > patience:
                    raise
                self._miss(error)
                waits = min(2 * waits, max(self._pause, _LONGEST_PAUSE))
            else:
                answered, waits = self._clock(), self._pause
                self._recover()
            self._stop.wait(waits)
        return True

    def _another(self, patience: float) -> _Another:
        return _Another(self._store, patience, self._clock)

    def _miss(self, error: QworkerError) -> None:
        text = f"{type(error).__name__}: {error}"
        if text != self._trouble:
            logger.warning("nothing is sent until this is over: %s", error)
        self._trouble = text

    def _recover(self) -> None:
        if self._trouble:
            logger.info("messages are sent again")
        self._trouble = ""


class _Another:
    """What is left to another relay, and whether that gets on."""

    def __init__(self, store: OutboxStore, patience: float, clock: Callable[[], float]) -> None:
        self._store = store
        self._patience = patience
        self._clock = clock
        #: The newest row at the first look.
        self._until: int | None = None
        #: The oldest row, and since when it is.
        self._oldest = 0
        self._since = clock()

    def look(self) -> bool | None:
        """Tell whether nothing is left; None as long as it gets on."""
        if self._until is None:
            self._until = self._store.newest()
        left = self._store.read(1, Bounds(until=self._until))
        if not left:
            return True
        if left[0].sequence != self._oldest:
            self._oldest, self._since = left[0].sequence, self._clock()
        if self._clock() - self._since <= self._patience:
            return None
        logger.warning(
            "row %d of the outbox has been the oldest for %.0f seconds: it, and what is behind it,"
            " is left to the process that has the lease",
            self._oldest,
            self._clock() - self._since,
        )
        return False
