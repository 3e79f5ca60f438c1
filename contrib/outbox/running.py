"""Runs a relay as a program of its own: one owner at a time, until SIGTERM or SIGINT.

The relay has a thread of its own. So a signal ends the program within ``PATIENCE`` seconds, and the
few that the lease takes, also where servers hang: what is not confirmed by then is a row, and sent
again by the next one. A database that does not answer is away after ``answering.PATIENCE`` seconds,
and a relay without one leaves the lease to others (:mod:`.holding`).
"""

from __future__ import annotations

import logging
import signal
import threading
from contextlib import contextmanager
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

from worker.contrib.outbox.answering import Answering
from worker.contrib.outbox.holding import Holding
from worker.contrib.outbox.loop import Loop
from worker.contrib.outbox.relay import Relay
from worker.contrib.outbox.rows import OutboxUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from contrib.outbox.rows import OutboxStore
    from worker import App

logger = logging.getLogger("worker.outbox")

#: Seconds that the relay has to come to an end.
PATIENCE = 10.0
#: Seconds without an answer after which the lease is given back, at least: so one that has hung is
#: asked anew before that, by another connection.
_SILENCE = 15.0
#: Seconds between two looks at a database that does not answer at the start.
_PAUSE = 0.5
#: Seconds between two looks whether a signal came.
_LOOK = 0.1
#: What is left is refused by the broker, and nobody waits for it.
_EXIT_LEFT = 75


def run(  # noqa: PLR0913 - the options of a command
    app: App,
    store: OutboxStore,
    *,
    batch: int = 200,
    pause: float = 0.5,
    grace: float = 1.0,
    burst: bool = False,
    name: str = "",
) -> int:
    """Relay what is in ``store`` while this process has the lease; return an exit code.

    ``name`` tells it from the other outboxes of the service, if any: each has a lease of its own.
    0: asked to end, or with ``burst`` nothing is left; 75: with ``burst``, what is left is refused,
    or is left to another relay that does not get on.
    For the main thread, whose SIGTERM and SIGINT it takes. Raises ConfigurationError,
    OutboxUnavailable and LeasesUnavailable where it cannot begin within ``connect_timeout``.
    """
    stop = threading.Event()
    rows = Answering(store)
    with _until_signalled() as signalled:
        _wait_for(rows, signalled, app.settings.connect_timeout)
        silence = max(app.settings.lease_ttl, _SILENCE)
        with Holding(app, rows, silence, name=name) as holding:

            def may_go_on() -> bool:
                return holding.is_mine() and not stop.is_set()

            _tell(app, holding)
            relay = Relay(app, rows, may_go_on, batch=batch, grace=0.0 if burst else grace)
            loop = Loop(relay, rows, may_go_on, stop, pause=pause)
            running = _Running(loop, patience=2 * silence if burst else None)
            running.start()
            while running.is_alive() and not signalled.yet:
                running.join(_LOOK)
            stop.set()
            running.join(PATIENCE)
            if running.is_alive():
                logger.warning("a server hangs; what it has not confirmed is sent again")
                return 0
            app.close()
    if running.error is not None:
        raise running.error
    logger.info("the relay of the outbox of %s has ended", app.name)
    return 0 if running.is_empty else _EXIT_LEFT


def _tell(app: App, holding: Holding) -> None:
    told = (
        "relaying the outbox of %s under the lease %s"
        if holding.is_mine()
        else "to relay the outbox of %s this process waits for the lease %s, which is another's"
    )
    logger.info(told, app.name, f"{app.name}:{holding.lease_name}")


class _Running(threading.Thread):
    """A loop at work; with ``patience`` as a burst."""

    def __init__(self, loop: Loop, *, patience: float | None) -> None:
        super().__init__(name="qworker-outbox-relay", daemon=True)
        self._loop = loop
        self._patience = patience
        #: Whether a burst has left nothing.
        self.is_empty = True
        self.error: BaseException | None = None

    def run(self) -> None:
        """Go on; keep what came of it."""
        try:
            if self._patience is None:
                self._loop.stand()
            else:
                self.is_empty = self._loop.burst(self._patience)
        except BaseException as error:  # noqa: BLE001 - raised by whoever waits
            self.error = error


class _Signalled:
    """Whether somebody has asked for the end.

    No Event: a signal that comes while the main thread is inside of one, and has its lock, would
    set it in that same thread, and wait for that lock for ever.
    """

    yet = False


def _wait_for(store: OutboxStore, signalled: _Signalled, seconds: float) -> None:
    """Return once the database answers. Raises what it says where it does not in time."""
    deadline = monotonic() + seconds
    while not signalled.yet:
        try:
            store.check()
        except OutboxUnavailable:
            if monotonic() > deadline:
                raise
            sleep(_PAUSE)
        else:
            return


@contextmanager
def _until_signalled() -> Iterator[_Signalled]:
    """Note the first SIGTERM or SIGINT; a second one does what it did before."""
    signalled = _Signalled()
    before: dict[int, Any] = {}

    def note(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, before[number])
        signalled.yet = True

    for number in (signal.SIGTERM, signal.SIGINT):
        before[number] = signal.getsignal(number)  # known before the first one can come
        signal.signal(number, note)
    try:
        yield signalled
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
