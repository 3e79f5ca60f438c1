"""Publishing with confirms, many under way at once, over a connection that mends itself."""

from __future__ import annotations

import logging
import os
import select
import threading
import weakref
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Self

from amqp.exceptions import AccessRefused

from worker.declaring import declare_or_find
from worker.errors import BrokerUnreachable, ConfigurationError, ConfirmTimeout, PublishError
from worker.patience import patiently
from worker.topology import public_exchanges
from worker.transport.capabilities import capabilities_of, connect, sqlite_path
from worker.transport.inbound import losses, release
from worker.transport.outbound import WINDOW, Outbound

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from worker.codec import Codec
    from worker.config import Settings
    from worker.message import Command, Event, Outgoing
    from worker.transport.outbound import Sent

logger = logging.getLogger("worker")

#: Seconds between a connection that was lost with nothing confirmed on it, and the next.
_PAUSE, _LONGEST_PAUSE = 0.05, 2.0
#: Seconds in which the messages of a burst are gathered, to be written together.
_BURST = 0.01
#: Where the window is full, so few messages have to be outstanding before more are taken: the
#: broker has the rest to work on meanwhile.
_REFILL = WINDOW - WINDOW // 8


#: Every publisher of the process: a child that is forked has to make each anew before it is used.
_living: weakref.WeakSet[Publisher] = weakref.WeakSet()


def _forked() -> None:
    for publisher in [*_living]:
        publisher.forked()


os.register_at_fork(after_in_child=_forked)


class Publisher:
    """Publishes for one app. A context manager; inside the block it belongs to one thread.

    ``publish`` does not wait for the confirm: the message is sent at once or, in a burst, some
    milliseconds later with those that follow. Leaving the block, or ``flush``, waits until all are
    confirmed. A broken connection is made anew by the next call, and what was not confirmed is sent
    again, under the same ids. A block within a block has its own messages confirmed. After a fork
    the child makes a connection of its own, and leaves to the parent what was published before.
    """

    def __init__(self, codec: Codec, settings: Settings) -> None:
        self._codec = codec
        self._settings = settings
        self._lock = threading.RLock()
        #: For each block that is open, how much was refused before it.
        self._blocks: list[int] = []
        #: The thread whose they are, or were.
        self._owner = 0
        self._outbound: Outbound | None = None
        #: What a lost connection did not confirm; the next one sends it first.
        self._unsent: list[Outgoing] = []
        self._refused: list[PublishError] = []
        #: Held by who uses what is above: the block's thread, and that of the timer.
        self._gate = threading.RLock()
        #: Until when a burst is gathered, or a broker that ended the connection is left alone.
        self._quiet_until = 0.0
        self._pause = 0.0
        #: Runs while a burst is gathered: somebody who falls silent then has sent it all the same.
        self._timer: threading.Timer | None = None
        #: Messages confirmed since it was made.
        self.confirmed = 0
        #: The broker is a file in which no service has a queue; and that was told.
        self._is_unserved = self._is_told = False
        #: Something of what is on its way is kept by its sender until it is confirmed.
        self._keeps = False
        _living.add(self)

    def __enter__(self) -> Self:
        """Take the publisher for this thread. Within a block, wait until that one is confirmed.

        Raises BrokerUnreachable where the block around it cannot be confirmed.
        """
        self._lock.acquire()
        try:
            with self._gate:
                self._move(until=0)
        except BaseException:
            self._lock.release()
            raise
        self._blocks.append(len(self._refused))
        self._owner = threading.get_ident()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wait until everything published in the block is confirmed.

        Raises what refused a message: Unroutable, PublishRefused, ConfirmTimeout; several at once
        as an ExceptionGroup. Raises BrokerUnreachable where no broker answers any more, and
        ConfigurationError where the user may not publish; nothing is on its way then.
        """
        try:
            told = isinstance(error, BrokerUnreachable) and self._outbound is None
            if not told:
                self.flush()
        finally:
            with self._gate:
                self._unsent = []
                del self._refused[self._blocks.pop() :]
                self._keeps = self._keeps and bool(self._blocks)
            self._lock.release()

    def publish(
        self,
        event: Event | Command,
        *,
        headers: Mapping[str, Any] | None = None,
        priority: int | None = None,
        transient: bool = False,
        correlation_id: str | None = None,
    ) -> str:
        """Put ``event`` on its way and return its id.

        Raises TypeError or ValueError where it cannot be encoded, BrokerUnreachable where no
        broker answers; then this one is not on its way, and what was before it still is.
        """
        outgoing = self._codec.encode(
            event,
            headers=headers,
            priority=priority,
            transient=transient,
            correlation_id=correlation_id,
        )
        self.send(outgoing)
        return outgoing.message_id

    def send(self, outgoing: Outgoing, *, kept_by_sender: bool = False) -> None:
        """Put a message on its way that is encoded already. Raises BrokerUnreachable.

        ``kept_by_sender``: until it is confirmed. So it is not sent to a file in which no service
        has a queue, where it would go nowhere: then BrokerUnreachable is raised as well.
        """
        with self._gate:
            self._keeps = self._keeps or kept_by_sender
            outbound = self._outbound or self._connect()
            if outbound.outstanding >= WINDOW:
                self._move(until=_REFILL)
                outbound = self._outbound or self._connect()
            if self._is_unserved and self._keeps:  # a service, or another file, may be there by now
                self._drop(outbound)
                outbound = self._connect()
            if self._is_unserved and not outgoing.mandatory:  # of one that is, its sender is told
                self._tell_unserved(outgoing)
            outbound.send((outgoing,))
            if self._outbound is not outbound:  # a signal's handler closed it in between
                self._unsent.append(outgoing)
                return
            if (left := self._quiet_until - monotonic()) <= 0:
                self._write(outbound)
            elif self._timer is None:
                self._gather(outbound, left)

    def flush(self) -> None:
        """Wait until everything on its way is confirmed. Raises as leaving the block does."""
        with self._gate:
            self._move(until=0)
            self._quiet_until = 0.0
            before = self._blocks[-1]
            refused, self._refused = self._refused[before:], self._refused[:before]
        if len(refused) == 1:
            raise refused[0]
        if refused:
            raise ExceptionGroup(f"{len(refused)} messages were not published", refused)

    def close(self) -> None:
        """Close the connection.

        What is not confirmed in an open block (of a thread that a signal interrupted, say) is sent
        again by the end of that block.
        """
        with self._lock, self._gate:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            outbound, self._outbound = self._outbound, None
            if outbound is not None:
                self._note(outbound.decided())
                self._unsent = outbound.unconfirmed() if self._blocks else []
                outbound.close()

    def forked(self) -> None:
        """Begin anew in the child, whose one thread this is; the parent's connection is left alone.

        Closing it here would end the parent's session, and its locks may be held by threads that
        the child does not have.
        """
        self._lock, self._gate = threading.RLock(), threading.RLock()
        self._outbound = self._timer = None
        self._unsent, self._refused, self._keeps = [], [], False
        if self._owner == threading.get_ident():
            self._blocks = [0] * len(self._blocks)
            for _ in self._blocks:
                self._lock.acquire()
        else:
            self._blocks = []

    def _move(self, until: int) -> None:
        """Write and take confirms until at most ``until`` messages are outstanding."""
        deadline = monotonic() + self._settings.confirm_timeout
        trouble, pause = "", 0.0
        while self._outstanding > until:
            outbound = self._outbound or self._connect()
            try:
                fates = outbound.pump()
            except BrokerUnreachable as error:
                trouble = f" ({error})"
                self._drop(outbound)
                if isinstance(error.__cause__, AccessRefused):
                    raise ConfigurationError(f"this user may not publish: {error}") from None
                if self._unsent and monotonic() > deadline:
                    self._give_up(trouble)
                    return
                sleep(pause)  # a broker that refuses a message ends every connection that has it
                pause = min(2 * pause + _PAUSE, _LONGEST_PAUSE)
                continue
            self._note(fates)
            if fates:
                pause = 0.0
                deadline = monotonic() + self._settings.confirm_timeout
            elif outbound.outstanding > until:
                if monotonic() > deadline:
                    self._drop(outbound)
                    self._give_up(trouble)
                elif (number := outbound.fileno()) is not None:
                    select.select([number], [], [], 0.1)

    def _write(self, outbound: Outbound) -> None:
        """Write what waits, and wait for nothing. What a lost connection had is sent later."""
        try:
            fates = outbound.pump()
        except BrokerUnreachable:
            self._drop(outbound)
            self._pause = min(2 * self._pause + _PAUSE, _LONGEST_PAUSE)
        else:
            self._note(fates)
            self._pause = 0.0 if fates else self._pause
        self._quiet_until = monotonic() + max(_BURST, self._pause)

    def _gather(self, outbound: Outbound, seconds: float) -> None:
        """Write what waits, and what joins it, in so many seconds."""
        self._timer = threading.Timer(seconds, self._end_burst)
        self._timer.daemon = True
        try:
            self._timer.start()
        except RuntimeError:  # no thread can be had; at the end of the interpreter, say
            self._timer = None
            self._write(outbound)

    def _end_burst(self) -> None:
        """Write what was gathered; the timer's thread calls it."""
        with self._gate:
            self._timer = None
            if self._outbound is not None:
                self._write(self._outbound)

    @property
    def _outstanding(self) -> int:
        return len(self._unsent) if self._outbound is None else self._outbound.outstanding

    def _note(self, fates: list[Sent]) -> None:
        for _, refusal in fates:
            if refusal is None:
                self.confirmed += 1
            else:
                self._refused.append(refusal)

    def _drop(self, outbound: Outbound) -> None:
        """Let go of a connection and keep what it did not confirm."""
        self._note(outbound.decided())
        self._unsent = outbound.unconfirmed()
        self._outbound = None
        outbound.abandon()

    def _give_up(self, trouble: str) -> None:
        lost, self._unsent = self._unsent, []
        ids = ", ".join(item.message_id for item in lost[:3]) + (", …" if lost[3:] else "")
        self._refused.append(
            ConfirmTimeout(
                f"{len(lost)} messages ({ids}) were not confirmed within"
                f" {self._settings.confirm_timeout} s; they may or may not be stored: publish them"
                f" again under the same ids{trouble}",
                *(item.message_id for item in lost),
            )
        )

    def _connect(self) -> Outbound:
        outbound = patiently(self._open, self._settings.connect_timeout)
        if self._is_unserved and self._keeps:
            outbound.close()
            raise BrokerUnreachable(
                f"{self._unserved}, so that what is sent would go nowhere: start the service with"
                " it (or 'qworker topology --declare'), or say another --broker"
            )
        self._outbound = outbound
        outbound.send(self._unsent)
        self._unsent = []
        return outbound

    def _open(self) -> Outbound:
        connection = connect(
            self._settings.broker,
            heartbeat=0,  # nobody would send ours while the application does something else
            timeout=self._settings.connect_timeout,
            name=f"qworker {self._codec.service} publisher {os.getpid()}",
        )
        try:
            is_file = capabilities_of(self._settings.broker).scheme == "sqlite"
            is_unserved = is_file and not connection.connection.has_queues
            for exchange in public_exchanges(self._settings):
                declare_or_find(exchange, connection)
        except BaseException as error:
            release(connection)
            if isinstance(error, losses(connection)):
                text = str(error) or type(error).__name__
                raise BrokerUnreachable(f"the broker ended the connection: {text}") from None
            raise
        self._is_unserved = is_unserved
        self._is_told = self._is_told and is_unserved
        return Outbound(connection, self._settings.broker)

    def _tell_unserved(self, outgoing: Outgoing) -> None:
        """Say, once, that events are published where nobody is: in the wrong folder, mostly."""
        if self._is_told:
            return
        self._is_told = True
        logger.warning(
            "%s: %r goes nowhere, and so does every event until one was (or 'qworker topology"
            " --declare'). Is it the file that is meant?",
            self._unserved,
            outgoing.routing_key,
        )

    @property
    def _unserved(self) -> str:
        file = Path(sqlite_path(self._settings.broker)).absolute()
        return f"{self._settings.broker} is {file}, and no service was ever started with it"
