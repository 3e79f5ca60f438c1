"""The publishing connection: a window of messages on their way to being confirmed.

``send`` queues, ``pump`` moves: it writes while the window has room and takes the confirms that
have come, never blocking. The same object serves the consumer's loop, which waits on its
descriptor among others, and :class:`worker.publisher.Publisher`, which waits on it alone. It is
never the consuming connection: waiting for a confirm there would deliver messages in between.

A message counts as sent only when the broker confirmed it. What was not confirmed when the
connection was lost is handed back by ``unconfirmed`` to be sent again on the next one, under the
same ids; every other message is in what ``pump`` or ``decided`` returned.
"""

from __future__ import annotations

from collections import Counter, deque
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

import amqp
import amqp.exceptions

from worker.errors import (
    BrokerUnreachable,
    ConfirmTimeout,
    PublishError,
    PublishRefused,
    Unroutable,
)
from worker.headers import check_headers
from worker.message import KEY_HEADER
from worker.sharding.slots import slot_of, slot_routing_key
from worker.transport.capabilities import capabilities_of
from worker.transport.departure import plain_properties, publish_frames
from worker.transport.embedded.encoding import Unencodable
from worker.transport.frames import FramePump
from worker.transport.inbound import abandon, losses, release
from worker.waiter import wait_readable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from kombu.connection import Connection

    from worker.message import Outgoing

#: Messages, and bytes of bodies, that may wait for their confirms. Together they stay below what
#: socket buffers hold, so that writing does not block when the broker stops reading.
WINDOW = 1000
WINDOW_BYTES = 1024 * 1024


#: What a message of a batch can be refused for by an embedded broker.
_REFUSALS = (
    amqp.exceptions.MessageNacked,
    amqp.exceptions.NotFound,
    amqp.exceptions.PreconditionFailed,
)


class Sent(NamedTuple):
    """The fate of one message: confirmed where ``error`` is None."""

    message: Outgoing
    error: PublishError | None


class Outbound:
    """Publishes on ``connection``, which it then owns, with publisher confirms.

    ``window``: messages that may wait for their confirms. More than ``WINDOW`` are for those who
    can wait while a broker does not read.
    """

    def __init__(self, connection: Connection, url: str, window: int = WINDOW) -> None:
        self._able = capabilities_of(url)
        self._window, self._window_bytes = window, window * WINDOW_BYTES // WINDOW
        self.connection = connection
        self._queue: deque[Outgoing] = deque()
        self._pending: dict[int, Outgoing] = {}
        self._pending_bytes = 0
        self._sequence = 0
        self._lowest = 1
        self._sent: list[Sent] = []
        #: What came back, by exchange, routing key and body: its properties may be undecodable.
        self._returned: Counter[tuple[str, str, bytes]] = Counter()
        self.blocked = False
        self._lost = losses(connection)
        try:
            self._channel = connection.channel()
            self._pump: FramePump | None = None
            if self._able.has_socket:
                self._channel.auto_decode = False  # bodies stay bytes
                self._channel.confirm_select()
                self._channel.events["basic_ack"].add(self._on_ack)  # read in a blocking call
                self._channel.events["basic_nack"].add(self._on_nack)
                self._channel.events["basic_return"].add(self._on_return)
                native = connection.connection
                native.on_blocked = self._on_blocked
                native.on_unblocked = self._on_unblocked
                self._pump = FramePump(native, [])
                self._pump.on_confirm = self._on_ack
        except BaseException as error:
            self.abandon()
            if isinstance(error, self._lost):
                raise self._gone(error) from None
            raise

    def fileno(self) -> int | None:
        """Return the descriptor to wait on; None where confirms need no waiting."""
        return None if self._pump is None else self._pump.fileno()

    @property
    def outstanding(self) -> int:
        """How many messages are not confirmed yet."""
        return len(self._queue) + len(self._pending)

    def send(self, messages: Iterable[Outgoing]) -> None:
        """Queue messages; ``pump`` sends them in this order."""
        self._queue.extend(messages)

    def pump(self) -> list[Sent]:
        """Write what the window has room for, and return what was decided meanwhile.

        Raises BrokerUnreachable where the connection is lost; ``decided`` has what was still heard,
        and the cause is what the broker said.
        """
        try:
            if self._able.publishes_batches:
                self._publish_batch()
            elif self._pump is not None:
                self._read(self._pump)
                if self._queue:
                    self._write(self._pump)
        except self._lost as error:
            raise self._gone(error) from error
        return self.decided()

    def deliver(
        self,
        messages: Sequence[Outgoing],
        timeout: float,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> list[PublishError | None]:
        """Publish ``messages`` in order; return what became of each, once everything is known.

        For a caller with nothing else to do: ``meanwhile`` is called now and then. Raises
        ConfirmTimeout where it is not known after ``timeout`` seconds, and BrokerUnreachable.
        """
        self.send(messages)
        fates: dict[int, PublishError | None] = {}
        deadline = monotonic() + timeout
        while len(fates) < len(messages):
            decided = self.pump()
            fates.update({id(message): error for message, error in decided})
            if decided:
                continue
            if monotonic() > deadline:
                raise ConfirmTimeout(f"the broker did not confirm within {timeout} s")
            self.keep_alive()
            meanwhile()
            wait_readable(self.fileno())
        return [fates[id(message)] for message in messages]

    def decided(self) -> list[Sent]:
        """Return what was decided and not returned yet: of a lost connection, its last words."""
        sent, self._sent = self._sent, []
        return sent

    def unconfirmed(self) -> list[Outgoing]:
        """Return what is not confirmed, in the order of sending."""
        return [*self._pending.values(), *self._queue]

    def keep_alive(self) -> None:
        """Send a heartbeat if it is time to, and notice that the broker's stay away."""
        try:
            self.connection.heartbeat_check()
        except self._lost as error:
            raise self._gone(error) from None

    def close(self) -> None:
        """Close the connection in order; never raises.

        A broker that reads no publishers would not answer the farewell either.
        """
        if self.blocked:
            self.abandon()
        else:
            release(self.connection)

    def abandon(self) -> None:
        """Let go of a connection that is lost; never raises."""
        abandon(self.connection, self._able)

    def _publish_batch(self) -> None:
        """Store what is queued, a batch in one transaction; alone what a batch fails by."""
        size = WINDOW
        while self._queue:
            batch = [self._queue.popleft() for _ in range(min(len(self._queue), size))]
            ready = [(self._prepare(i), i.exchange, i.routing_key, i.mandatory) for i in batch]
            try:
                unroutable = set(self._channel.publish_many(ready))
            except (Unencodable, *_REFUSALS) as error:  # of the batch, nothing is stored
                if len(batch) == 1:
                    self._sent.append(Sent(batch[0], _refused(batch[0], error)))
                else:
                    self._queue.extendleft(reversed(batch))
                    size = 1
                continue
            except BaseException:
                self._queue.extendleft(reversed(batch))
                raise
            for index, item in enumerate(batch):
                fate = _unroutable(item) if index in unroutable else None
                self._sent.append(Sent(item, fate))

    def _write(self, pump: FramePump) -> None:
        frames: list[bytes] = []
        while (
            self._queue
            and not self.blocked
            and len(self._pending) < self._window
            and self._pending_bytes < self._window_bytes
        ):
            item = self._queue.popleft()
            try:
                frames.append(self._encode(item))
            except Exception as error:  # noqa: BLE001 - py-amqp raises many kinds
                self._sent.append(Sent(item, _refused(item, error)))
                continue
            self._sequence += 1
            self._pending[self._sequence] = item
            self._pending_bytes += len(item.body)
        if frames:
            pump.write(b"".join(frames))

    def _encode(self, item: Outgoing) -> bytes:
        properties = item.raw
        if properties is None:
            headers = _routed(item)
            properties = plain_properties(item.properties, headers)
            if properties is None:
                check_headers(headers)
                message = amqp.Message(b"", application_headers=headers, **item.properties)
                properties = message._serialize_properties()  # noqa: SLF001 - its one encoder
        return publish_frames(
            self._channel.channel_id,
            exchange=item.exchange,
            routing_key=item.routing_key,
            mandatory=item.mandatory,
            properties=properties,
            body=item.body,
            frame_max=self.connection.connection.frame_max,
        )

    def _read(self, pump: FramePump) -> None:
        pump.pump(1)  # no message ever arrives here: all frames that are there

    def _prepare(self, item: Outgoing) -> amqp.Message:
        return amqp.Message(item.body, application_headers=item.headers, **item.properties)

    def _on_ack(self, tag: int, multiple: bool) -> None:  # noqa: FBT001 - py-amqp's signature
        for item in self._take(tag, multiple=multiple):
            place = (item.exchange, item.routing_key, item.body)
            if place not in self._returned:
                self._sent.append(Sent(item, None))
                continue
            self._returned[place] -= 1
            if not self._returned[place]:
                del self._returned[place]  # it holds the body
            self._sent.append(Sent(item, _unroutable(item)))

    def _on_nack(self, tag: int, multiple: bool) -> None:  # noqa: FBT001 - py-amqp's signature
        for item in self._take(tag, multiple=multiple):
            text = f"{item.message_id}: the broker refused it (basic.nack)"
            refused = PublishRefused(text, item.message_id)
            self._sent.append(Sent(item, refused))

    def _take(self, tag: int, *, multiple: bool) -> list[Outgoing]:
        """Remove from the window what a confirm speaks of."""
        tags = range(self._lowest, tag + 1) if multiple else (tag,)
        items = [self._pending.pop(t) for t in tags if t in self._pending]
        if multiple:
            self._lowest = tag + 1
        self._pending_bytes -= sum(len(item.body) for item in items)
        return items

    def _on_return(self, _error: Any, exchange: str, routing_key: str, message: Any) -> None:
        self._returned[exchange, routing_key, bytes(message.body)] += 1

    def _on_blocked(self, _reason: object = None) -> None:
        self.blocked = True

    def _on_unblocked(self) -> None:
        self.blocked = False

    def _gone(self, error: BaseException) -> BrokerUnreachable:
        text = str(error) or type(error).__name__
        return BrokerUnreachable(f"the publishing connection to the broker is lost: {text}")


def _routed(item: Outgoing) -> dict[str, Any]:
    """Return the headers of ``item`` with the slot of its key as one more routing key.

    The broker takes ``BCC`` off (RabbitMQ, "Sender-selected Distribution"). What goes straight into
    a queue, by the default exchange, needs no slot.
    """
    headers = item.headers
    if not item.exchange:
        return headers
    key = headers.get(KEY_HEADER)
    others = headers.get("BCC", [])
    if not isinstance(key, str) or not isinstance(others, list):
        return headers
    return {**headers, "BCC": [*others, slot_routing_key(slot_of(key))]}


def _refused(item: Outgoing, error: Exception) -> PublishRefused:
    text = f"{item.message_id}: it cannot be published: {error}"
    return PublishRefused(text, item.message_id)


def _unroutable(item: Outgoing) -> Unroutable:
    return Unroutable(
        f"{item.message_id}: no queue is bound to exchange {item.exchange!r} for"
        f" {item.routing_key!r}; has the service that receives it been started once?",
        item.message_id,
    )
