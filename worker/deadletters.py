"""Reads messages that were set aside: the dead-letter and the parked queue of a service.

Reading takes nothing away and reorders nothing: messages are consumed on a channel of their own and
not acknowledged, and when the channel closes the broker puts them back where they were. On a
quorum queue each reading adds one to their delivery count, which our queues allow a million times.
What somebody else is reading at the same moment is not seen; a quorum queue counts a reader, and
keeps what it had, for some milliseconds after it left.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any, Self

import amqp.exceptions

from worker.aside import (
    ATTEMPTS,
    DETAIL,
    HANDLER,
    PREFIX,
    QUEUE,
    REASON,
    RECORD,
    TIME,
    first_death,
    redirect,
)
from worker.aside import KEY as DEAD_KEY
from worker.config import mask_url
from worker.dedup.base import RECORD_BYTES, record_ids
from worker.errors import BrokerUnreachable, UsageError
from worker.message import KEY_HEADER, UNDECODABLE, Message
from worker.parking import KEY as PARKED_KEY
from worker.parking import PLACE
from worker.transport.capabilities import connect, is_missing
from worker.transport.inbound import Inbound, release
from worker.waiter import wait_readable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from worker.codec import Codec
    from worker.config import Settings
    from worker.message import Outgoing
    from worker.transport.arrival import Arrival

#: The most that AMQP lets a consumer hold: a reading goes no further, unless it removes.
MOST_HELD = 65_535
_FETCH = 1000
#: Seconds without a delivery after which what was counted is somebody else's by now.
_SILENCE = 3.0


class NoSuchQueue(UsageError):
    """The service has no such queue on this broker."""


@dataclass(frozen=True, slots=True)
class Letter:
    """One message as it lies in the queue; what cannot be read of it is empty."""

    id: str
    name: str
    #: What orders it; None: nothing does.
    key: str | None
    headers: Mapping[str, Any]
    #: AMQP basic properties by py-amqp's names.
    properties: Mapping[str, Any]
    body: bytes = field(repr=False)
    #: The delivery that it came by.
    arrival: Arrival = field(repr=False)

    @classmethod
    def of(cls, arrival: Arrival, codec: Codec) -> Letter:
        """Read a delivery by the wire format of its service."""
        properties, body = arrival.properties, arrival.body
        headers = properties.get("application_headers") or {}
        known = {name: value for name, value in properties.items() if name != "application_headers"}
        message = codec.decode(body, properties)
        if isinstance(message, Message):
            id_, name, key = message.id, message.name, message.key
        else:
            id_, name = (str(properties.get(what) or "") for what in ("message_id", "type"))
            key = headers.get(KEY_HEADER)
        # A foreign publisher's, which a handler's class found.
        key = key or headers.get(PARKED_KEY) or headers.get(DEAD_KEY)
        return cls(id_, name, None if key is None else str(key), headers, known, body, arrival)

    @property
    def reason(self) -> str:
        """Why it was set aside."""
        return self._text(REASON)

    @property
    def detail(self) -> str:
        """The traceback, where an exception is the reason."""
        return self._text(DETAIL)

    @property
    def handler(self) -> str:
        """The handler that could not do it; empty where it reached none."""
        return self._text(HANDLER)

    @property
    def time(self) -> str:
        """When it was set aside: ISO 8601, UTC."""
        return self._text(TIME)

    @property
    def attempts(self) -> int:
        """How often the handler was tried."""
        value = self.headers.get(ATTEMPTS)
        return value if isinstance(value, int) else 0

    @property
    def place(self) -> str:
        """What orders the parked messages of a key."""
        return self._text(PLACE)

    @property
    def queue(self) -> str:
        """The queue that it came from; empty where nothing tells."""
        return self._text(QUEUE) or str(first_death(self.headers).get("queue") or "")

    @property
    def undecodable(self) -> str:
        """Why its AMQP properties cannot be decoded; empty where they can."""
        return str(self.properties.get(UNDECODABLE) or "")

    def record(self, service: str) -> bytes | None:
        """Return its record in the dedup store; None where it reached no handler."""
        if not self.handler or not self.id:
            return None
        with suppress(ValueError):  # a text of somebody else's
            if len(said := bytes.fromhex(self._text(RECORD))) == RECORD_BYTES:
                return said
        return record_ids(f"{service}.{self.handler}")(self.id)

    def back(self, exchange: str, routing_key: str, add: Mapping[str, str | int]) -> Outgoing:
        """Return it to be sent to where its key is handled, with the headers ``add``.

        It is an error where no queue takes it.
        """
        # Not the id that the codec found: a message that comes back is known by its property.
        message_id = str(self.properties.get("message_id") or "")
        return redirect(
            self.arrival,
            message_id,
            exchange=exchange,
            routing_key=routing_key,
            facts=add,
            drop_prefix=PREFIX,
        )

    def _text(self, header: str) -> str:
        return str(self.headers.get(header) or "")


def require_broker(service: str, broker: str) -> None:
    """Raise NoSuchQueue where the broker is a file that is not there; looking must not make it."""
    if is_missing(broker):
        raise _never_started(f"there is no {mask_url(broker)} here", service)


def _never_started(told: str, service: str) -> NoSuchQueue:
    return NoSuchQueue(f"{told}: was the service {service!r} ever started on it?")


class Box:
    """One queue of set-aside messages, open for reading. A context manager, for one thread.

    Raises NoSuchQueue where the service has none, BrokerUnreachable where no broker answers.
    """

    def __init__(self, queue: str, codec: Codec, settings: Settings) -> None:
        self.queue = queue
        self._codec = codec
        self._removed = False
        require_broker(codec.service, settings.broker)
        connection = connect(
            settings.broker,
            heartbeat=settings.heartbeat,
            timeout=settings.connect_timeout,
            name=f"qworker {codec.service} letters {os.getpid()}",
        )
        try:
            counted = connection.channel().queue_declare(queue, passive=True)
            #: How many messages it held when it was opened.
            self.depth = int(counted.message_count)
            #: How many others are reading it; what they have is not in ``depth``.
            self.readers = int(counted.consumer_count)
            #: Messages that are still to be read; what is left of them others have, or they are
            #: more than can be held.
            self.unread = self.depth
            # All of it: a quorum queue puts what returns behind what returned before, so the
            # reading of a part would turn the queue round.
            held = min(max(self.depth, 1), MOST_HELD)
            self._inbound = Inbound(connection, settings.broker, held)
            self._inbound.consume({0: queue})
        except amqp.exceptions.NotFound:
            release(connection)
            raise _never_started(f"the broker has no queue {queue!r}", codec.service) from None
        except (*connection.connection_errors, *connection.channel_errors, OSError) as error:
            release(connection)
            raise BrokerUnreachable(f"cannot read {queue!r}: {error}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *exc_info: object) -> None:
        """Put everything back that was not removed.

        Raises BrokerUnreachable where something that was removed may have come back.
        """
        try:
            if self._removed and kind is None:
                self._inbound.end_consumers()
        finally:
            self._inbound.close()

    def read(self) -> Iterator[Letter]:
        """Yield the messages that it held when it was opened, in order. Walk it once.

        Raises BrokerUnreachable where the connection is lost.
        """
        last = monotonic()
        while self.unread:
            arrived = self._inbound.fetch(_FETCH)
            self.keep_alive()
            for _, arrival in arrived[: self.unread]:
                self.unread -= 1
                yield Letter.of(arrival, self._codec)
                last = monotonic()
            if not arrived and monotonic() - last > _SILENCE:
                return
            if not arrived:
                wait_readable(self._inbound.fileno())

    @property
    def is_shared(self) -> bool:
        """Whether somebody else has some of it; to be asked once it is read."""
        return self.readers > 0 or (self.unread > 0 and self.depth <= MOST_HELD)

    def remove(self, letters: Iterable[Letter]) -> None:
        """Take messages out of the queue; for good when the box was closed without an error.

        Raises BrokerUnreachable.
        """
        (channel,) = self._inbound.channels
        for letter in letters:
            self._removed = True
            channel.settlement.finish(letter.arrival.tag)
        self._inbound.settle(everything=True)

    def keep_alive(self) -> None:
        """Send a heartbeat if it is time to. Raises BrokerUnreachable."""
        self._inbound.keep_alive()
