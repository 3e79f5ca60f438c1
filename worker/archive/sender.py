"""Sends archived events into the queues of one service, no more of them ahead than it can take.

Where they go is for :mod:`worker.places` to say: past every exchange that others listen to, into
the shards of their keys, in the generation that takes what is sent to the service alone. Where that
changed while they were on their way they are sent once more: see there.

A queue gets so many messages ahead of what is consumed, and then is looked at before it gets more.
So a replay neither fills the broker, nor keeps what is live waiting behind all of the past.
"""

from __future__ import annotations

import os
from time import monotonic, sleep
from typing import TYPE_CHECKING, Self

from worker.archive.entry import outgoing_of
from worker.archive.wire import SURELY_FIT, make_fit
from worker.errors import ConfirmTimeout, StoreCorrupt
from worker.inspector import Inspector
from worker.message import KEY_HEADER
from worker.places import Places
from worker.transport.capabilities import capabilities_of, connect
from worker.transport.outbound import WINDOW, Outbound
from worker.waiter import wait_readable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from worker.app import App
    from worker.archive.entry import Entry
    from worker.config import Settings
    from worker.errors import PublishError
    from worker.message import Outgoing

_FIRST_LOOK, _LONGEST_LOOK = 0.02, 0.5
#: Messages that may wait for their confirms: they are long in coming from a broker that has to
#: serve consumers at the same time.
_WINDOW = 4 * WINDOW


class Moved(Exception):
    """What is sent to the service goes to another generation by now."""


class Sender:
    """Sends to one service. A context manager, for one thread.

    ``headers`` are added to each event, ``ahead`` is for each shard (0: no bound), ``stays`` says
    that all belongs in the generation that it is sent to at first. While a queue has that much
    ahead it calls ``waits`` with its name again and again, and with an empty text when it goes on;
    what that raises is raised.

    Raises BrokerUnreachable, LeasesUnavailable and ConfigurationError throughout.
    """

    def __init__(  # noqa: PLR0913 - what it needs
        self,
        service: str,
        settings: Settings,
        app: App | None,
        *,
        headers: Mapping[str, str],
        ahead: int,
        stays: bool = False,
        waits: Callable[[str], None] = lambda _queue: None,
    ) -> None:
        self._settings = settings
        self._headers = headers
        self._ahead = ahead
        self._stays = stays
        self._waits = waits
        #: How many more each queue gets before it is looked at.
        self._room: dict[str, int] = {}
        #: What was sent since ``settle``, in order; and what of that was refused.
        self._unsettled: list[Outgoing] = []
        self._refused: list[PublishError] = []
        self._inspector: Inspector | None = None
        self._service = service
        self._has_frames = capabilities_of(settings.broker).has_socket
        connection = connect(
            settings.broker,
            heartbeat=settings.heartbeat,
            timeout=settings.connect_timeout,
            name=f"qworker {service} replay {os.getpid()}",
        )
        self._outbound = Outbound(connection, settings.broker, _WINDOW)
        try:
            self.places = Places(service, settings, app)
        except BaseException:
            self._outbound.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connections."""
        self._outbound.close()
        self.places.close()
        if self._inspector is not None:
            self._inspector.__exit__(None, None, None)

    def send(self, entries: Sequence[Entry]) -> None:
        """Put events on their way, in their order. Raises as ``settle`` does.

        It waits where too many are on their way, and not for the confirms of all of these.
        """
        self._put([self._message(entry) for entry in entries])

    def settle(self) -> None:
        """Wait until the queues have confirmed all, and look whether these are the right ones.

        Raises PublishError where one was refused, ConfirmTimeout where that is not known: nothing
        is lost, some of them may have been sent, and all can be sent again. Raises Moved where what
        was sent may be, or belongs, in another generation, and this one was to stay.
        """
        while True:
            self._pump(0)
            refused, self._refused = self._refused, []
            # What was refused may have had a queue that is removed by now.
            if not self.places.moved():
                break
            self._again()
        if refused:
            raise refused[0]
        self._unsettled = []

    def _again(self) -> None:
        """Send all that is not settled once more: where it belongs the second copy is dropped."""
        if self._stays:
            raise Moved
        messages, self._unsettled = self._unsettled, []
        self._room.clear()
        self._put(messages)

    def _put(self, messages: Sequence[Outgoing]) -> None:
        for message in messages:
            key = message.headers.get(KEY_HEADER)
            keyed = isinstance(key, str) and bool(key)
            order = key if isinstance(key, str) and key else message.message_id
            message.exchange, message.routing_key = self.places.of_event(order, keyed=keyed)
            queue = message.routing_key
            if self._ahead and queue:
                if self._room.get(queue, 0) <= 0:
                    self._wait_for_room(queue)
                self._room[queue] = self._room.get(queue, 0) - 1
            self._unsettled.append(message)
            self._outbound.send((message,))
        self._pump(_WINDOW)

    def _pump(self, until: int) -> None:
        """Write and take confirms until no more than so many messages are under way.

        Raises ConfirmTimeout where nothing is confirmed for too long.
        """
        timeout = self._settings.confirm_timeout
        deadline = monotonic() + timeout
        while True:
            decided = self._outbound.pump()
            self._refused += [error for _, error in decided if error is not None]
            if self._outbound.outstanding <= until:
                return
            if decided:
                deadline = monotonic() + timeout
            elif monotonic() > deadline:
                raise ConfirmTimeout(f"the broker did not confirm within {timeout} s")
            else:
                self._outbound.keep_alive()
                wait_readable(self._outbound.fileno())

    def _message(self, entry: Entry) -> Outgoing:
        try:
            message = outgoing_of(entry, self._headers)
        except ValueError as error:
            raise StoreCorrupt(
                f"the archive's event {entry.id} (place {entry.seq}) cannot be read: {error}"
            ) from None
        if self._has_frames and len(entry.headers) > SURELY_FIT:
            make_fit(message)
        return message

    def _wait_for_room(self, queue: str) -> None:
        """Wait until a queue has room for more."""
        pause, told = _FIRST_LOOK, False
        while True:
            self._pump(0)  # what is under way counts too
            if self._inspector is None:
                self._inspector = Inspector(self._service, self._settings)
            depth = self._inspector.depth(queue)
            # Where there is none, the broker tells when something is sent there.
            self._room[queue] = self._ahead - (0 if depth is None else depth.ready)
            if self._room[queue] > 0:
                break
            self._waits(queue)
            told = True
            deadline = monotonic() + pause
            while (left := deadline - monotonic()) > 0:
                self.keep_alive()
                sleep(min(left, 0.1))
            pause = min(2 * pause, _LONGEST_LOOK)
        if told:
            self._waits("")

    def keep_alive(self) -> None:
        """Send a heartbeat if it is time to; read those of the broker, and confirms."""
        self._refused += [error for _, error in self._outbound.pump() if error is not None]
        self._outbound.keep_alive()
