"""The channel: AMQP's methods, by py-amqp's names, arguments and errors.

Differences from py-amqp over RabbitMQ, all on the safe side: a method has happened when it returns
(so a publish is confirmed by its return, and an unroutable mandatory message is known there), an
error leaves the channel open with its consumers, bodies are always bytes, and what the broker
cannot do is refused rather than ignored. ``publish_many`` and ``settle`` are additions.
"""

# ruff: noqa: ARG002, FBT001, FBT002, PLR0913, PLR0917 - the signatures are py-amqp's and kombu's

from __future__ import annotations

import itertools
import uuid
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import amqp
from amqp import exceptions
from kombu.transport.pyamqp import Message as _Message

from worker.transport.embedded.broker import unknown_tag
from worker.transport.embedded.declaring import DeclaringChannel
from worker.transport.embedded.encoding import check_short_string, decode_properties
from worker.transport.embedded.store import Place

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from worker.transport.embedded.catalog import Queue
    from worker.transport.embedded.connection import Connection
    from worker.transport.embedded.store import Leased

_BASIC_CONSUME, _BASIC_QOS, _BASIC_CANCEL = (60, 20), (60, 10), (60, 30)
_BASIC_PUBLISH, _BASIC_RETURN, _BASIC_GET = (60, 40), (60, 50), (60, 70)
_BASIC_ACK, _BASIC_REJECT, _BASIC_RECOVER = (60, 80), (60, 90), (60, 110)
_NO_ROUTE = 312


@dataclass(slots=True, eq=False)
class Consumer:
    """One consumer of one queue, or (``tag`` empty) what a channel holds by basic_get."""

    id: int
    queue: Queue
    channel: Channel
    tag: str = ""
    callback: Callable[[amqp.Message], object] | None = None
    on_cancel: Callable[[str], object] | None = None
    no_ack: bool = False
    #: How many messages it may hold; 0 is any number. Fixed for its life.
    prefetch: int = 0
    #: How many messages it holds: delivered or about to be, and not settled.
    held: int = 0
    #: It is given no more messages.
    ended: bool = False


class Channel(DeclaringChannel):
    """One channel of a connection. Thread rules are the connection's."""

    Message = _Message

    def __init__(self, connection: Connection, channel_id: int) -> None:
        super().__init__(connection, channel_id)
        self.is_open = True
        #: Whether deliveries flow.
        self.active = True
        self.no_ack_consumers: set[str] = set()  # type: ignore[assignment] # kombu says None
        self.events: dict[str, set[Callable[..., object]]] = defaultdict(set)
        self.consumers: dict[str, Consumer] = {}
        self._getters: dict[int, Consumer] = {}
        #: Delivered messages that wait for their settlement, by delivery tag, in order.
        self._unsettled: dict[int, tuple[Consumer, Place]] = {}
        self._tags = itertools.count(1)
        self._prefetch = 0
        self._confirms: itertools.count[int] | None = None

    # Publishing

    def prepare_message(
        self,
        body: bytes | str,
        priority: int | None = None,
        content_type: str | None = None,
        content_encoding: str | None = None,
        headers: Mapping[str, Any] | None = None,
        properties: Mapping[str, Any] | None = None,
    ) -> amqp.Message:
        """Return a message that basic_publish takes."""
        return amqp.Message(
            body,
            priority=priority,
            content_type=content_type,
            content_encoding=content_encoding,
            application_headers=headers,
            **properties or {},
        )

    def message_to_python(self, raw_message: amqp.Message) -> _Message:
        """Return kombu's message of a delivered one."""
        return self.Message(raw_message, channel=self)  # type: ignore[no-untyped-call] # kombu's

    def basic_publish(
        self,
        msg: amqp.Message,
        exchange: str = "",
        routing_key: str = "",
        mandatory: bool = False,
        immediate: bool = False,
        timeout: float | None = None,
        confirm_timeout: float | None = None,
    ) -> None:
        """Publish one message; it is stored, durably if persistent, when this returns.

        A mandatory message that no queue takes goes to the ``basic_return`` callbacks; without
        one, raises ChannelError 312. Raises NotFound for a missing exchange, MessageNacked
        where a full queue refuses, Unencodable for what AMQP cannot carry.
        """
        if immediate:
            raise _not_implemented("immediate=true", _BASIC_PUBLISH)
        if self._broker.publish(((msg, exchange, routing_key, mandatory),)):
            self._give_back(msg, exchange, routing_key)
        if self._confirms is not None:
            self._connection.confirmed(self, next(self._confirms))

    def publish_many(self, batch: Iterable[tuple[amqp.Message, str, str, bool]]) -> list[int]:
        """Publish (message, exchange, routing key, mandatory) each, all in one transaction.

        Returns the places in the batch of the mandatory ones that no queue takes; all others
        are stored, durably, when this returns. Where it raises, nothing is stored: NotFound,
        MessageNacked, PreconditionFailed as for one; Unencodable, whose ``index`` is the place
        of the message that AMQP cannot carry.
        """
        return self._broker.publish(batch)

    def confirm_select(self, nowait: bool = False) -> None:
        """Have ``basic_ack`` events for publishes, in the drain_events after each.

        Code that knows nothing of this broker works with them; a publish is confirmed by its
        return anyway.
        """
        if self._confirms is None:
            self._confirms = itertools.count(1)

    # Consuming

    def basic_qos(self, prefetch_size: int, prefetch_count: int, a_global: bool) -> None:
        """Set the prefetch of the consumers that this channel starts from now on; 0 is no limit."""
        if prefetch_size or a_global:
            raise _not_implemented("prefetch_size and global prefetch", _BASIC_QOS)
        self._prefetch = prefetch_count

    def basic_consume(
        self,
        queue: str = "",
        consumer_tag: str = "",
        no_local: bool = False,
        no_ack: bool = False,
        exclusive: bool = False,
        nowait: bool = False,
        callback: Callable[[amqp.Message], object] | None = None,
        arguments: Mapping[str, Any] | None = None,
        on_cancel: Callable[[str], object] | None = None,
    ) -> str:
        """Start a consumer and return its tag. Its deliveries come with drain_events.

        Raises NotFound, ResourceLocked, AccessRefused (another exclusive consumer), NotAllowed
        (the tag is in use).
        """
        connection = self._connection
        if arguments and arguments.get("x-priority"):
            raise _not_implemented("consumer priorities (x-priority)", _BASIC_CONSUME)
        tag = check_short_string(consumer_tag, "a consumer tag") or f"ctag-{uuid.uuid4()}"
        if tag in self.consumers:
            raise exceptions.NotAllowed(
                f"NOT_ALLOWED - attempt to reuse consumer tag {tag!r}", _BASIC_CONSUME
            )
        found = self._queue(queue, _BASIC_CONSUME)
        self.consumers[tag] = consumer = Consumer(
            id=connection.broker.presence.add_consumer(found, exclusive=exclusive),
            queue=found,
            channel=self,
            tag=tag,
            callback=callback,
            on_cancel=on_cancel,
            no_ack=no_ack,
            prefetch=0 if no_ack else self._prefetch,
        )
        if no_ack:
            self.no_ack_consumers.add(tag)
        connection.add_consumer(consumer)
        return tag

    def basic_cancel(self, consumer_tag: str, nowait: bool = False) -> None:
        """End a consumer. What it holds stays to be settled; what it was not yet given goes back.

        A successor of a single active consumer starts when all of that is settled.
        """
        consumer = self.consumers.get(consumer_tag)
        if consumer is None or self.connection is None:
            return
        broker = self._broker
        undelivered = self.connection.withdraw(consumer)
        if undelivered:
            broker.requeue([Place(consumer.queue.id, *row[:2], consumer.id) for row in undelivered])
            consumer.held -= len(undelivered)
        broker.presence.cancel_consumer(consumer.id, consumer.queue, holds=consumer.held > 0)
        self.forget_consumer(consumer)

    def basic_get(self, queue: str = "", no_ack: bool = False) -> amqp.Message | None:
        """Take one message, or None. Raises ResourceLocked where a single active consumer is."""
        broker = self._broker
        found = self._queue(queue, _BASIC_GET)
        getter = None if no_ack else self._getters.get(found.id)
        got = broker.get(found, getter.id if getter else None, no_ack=no_ack)
        if got is None:
            return None
        id_, row = got
        if getter is None:
            getter = Consumer(id_, found, self, no_ack=no_ack, ended=True)
            if not no_ack:
                self._getters[found.id] = getter
        if not no_ack:
            getter.held += 1
        message = self.receive(getter, row)
        del message.delivery_info["consumer_tag"]
        message.delivery_info["message_count"] = broker.depth(found).ready
        return message

    def flow(self, active: bool) -> None:
        """Stop or resume deliveries on this channel; what is already fetched still comes."""
        self.active = active
        self._connection.look()

    # Settling

    def basic_ack(self, delivery_tag: int, multiple: bool = False) -> None:
        """Acknowledge a message, or (``multiple``) all up to it; 0 with multiple is all.

        Raises PreconditionFailed for a tag that is not there to settle. What was given to
        others meanwhile, because the lease had expired, is left to them.
        """
        if multiple:
            self._connection.settle([(self, delivery_tag, ())])
        else:
            self._connection.settle([(self, None, (delivery_tag,))])

    def settle(self, delivery_tags: Iterable[int]) -> None:
        """Acknowledge any set of messages in one transaction. As basic_ack for each."""
        self._connection.settle([(self, None, delivery_tags)])

    def basic_reject(self, delivery_tag: int, requeue: bool) -> None:
        """Give a message back, to its old place in the queue, or dead-letter it."""
        broker = self._broker
        (place,) = self.places([delivery_tag], _BASIC_REJECT)
        if requeue:
            count = broker.requeue([place])
        else:
            count = broker.reject(self._unsettled[delivery_tag][0].queue, [place])
        if not count:
            self._connection.doubt()
        self.settled([delivery_tag])

    def basic_recover(self, requeue: bool = False) -> None:
        """Give all unsettled messages of this channel back to their old places."""
        if not requeue:
            raise _not_implemented("basic.recover without requeue", _BASIC_RECOVER)
        broker = self._broker
        tags = list(self._unsettled)
        if tags:
            if broker.requeue(self.places(tags, _BASIC_RECOVER)) < len(tags):
                self._connection.doubt()
            self.settled(tags)

    basic_recover_async = basic_recover

    def close(self) -> None:
        """Give everything back, in order, end the consumers, and close the channel."""
        connection, self.connection = self.connection, None
        if connection is None:
            return
        self.is_open = False
        consumers = [*self.consumers.values(), *self._getters.values()]
        # Cancelled ones that still hold something are found through what they hold.
        ids = {c.id for c in consumers} | {holder.id for holder, _ in self._unsettled.values()}
        try:
            if ids and connection.connected:
                connection.broker.presence.remove_consumers(sorted(ids))
        finally:
            for consumer in consumers:
                connection.withdraw(consumer)
                connection.remove_consumer(consumer)
            connection.remove_channel(self)
            self.collect()

    # For the connection

    def receive(self, consumer: Consumer, row: Leased) -> amqp.Message:
        """Make the message of a leased row, with its delivery tag, as py-amqp makes them."""
        rank, number, redelivered, exchange, routing_key, properties, body = row
        tag = next(self._tags)
        if not consumer.no_ack:
            place = Place(consumer.queue.id, rank, number, consumer.id)
            self._unsettled[tag] = (consumer, place)
        message = amqp.Message(body, channel=self)
        message.properties = decode_properties(properties)
        message.delivery_info = {
            "consumer_tag": consumer.tag,
            "delivery_tag": tag,
            "redelivered": bool(redelivered),
            "exchange": exchange,
            "routing_key": routing_key,
        }
        return message

    def tags(self, upto: int | None, singles: Iterable[int]) -> list[int]:
        """Return each delivery tag that an acknowledgement means, once: all up to one, and some.

        Raises PreconditionFailed where ``upto`` is not there to settle.
        """
        unsettled = self._unsettled
        if upto is None:
            return list(dict.fromkeys(singles))
        if upto == 0:
            return list(unsettled)
        if upto not in unsettled:
            raise unknown_tag(upto, _BASIC_ACK)
        first = itertools.takewhile(lambda tag: tag <= upto, unsettled)
        return list(dict.fromkeys((*first, *singles)))

    def places(self, tags: Iterable[int], method: tuple[int, int] = _BASIC_ACK) -> list[Place]:
        """Return where unsettled messages are; raises PreconditionFailed for any other tag."""
        unsettled = self._unsettled
        try:
            return [unsettled[tag][1] for tag in tags]
        except KeyError as error:
            raise unknown_tag(error.args[0], method) from None

    def settled(self, tags: Iterable[int]) -> None:
        """Forget what was settled."""
        for tag in tags:
            consumer, _ = self._unsettled.pop(tag)
            consumer.held -= 1
            if consumer.ended and not consumer.held:
                if not consumer.tag:
                    del self._getters[consumer.queue.id]
                self._broker.presence.remove_consumers([consumer.id])

    def forget_consumer(self, consumer: Consumer) -> None:
        """Let go of a consumer that has ended."""
        consumer.ended = True
        self.consumers.pop(consumer.tag, None)
        self.no_ack_consumers.discard(consumer.tag)
        self._connection.remove_consumer(consumer)

    def collect(self) -> None:
        """Let go of everything."""
        self.connection = None
        self.is_open = False
        self.consumers.clear()
        self._getters.clear()
        self._unsettled.clear()
        self.events.clear()
        self.no_ack_consumers.clear()

    def _give_back(self, message: amqp.Message, exchange: str, routing_key: str) -> None:
        error = exceptions.error_for_code(
            _NO_ROUTE, "NO_ROUTE", _BASIC_RETURN, exceptions.ChannelError
        )
        callbacks = self.events["basic_return"]
        if not callbacks:
            raise error
        for callback in callbacks:
            callback(error, exchange, routing_key, message)


def _not_implemented(what: str, method: tuple[int, int]) -> exceptions.AMQPNotImplementedError:
    return exceptions.AMQPNotImplementedError(
        f"NOT_IMPLEMENTED - the embedded broker has no {what}", method
    )
