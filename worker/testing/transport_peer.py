"""Peers of a broker, as the suite of transports sees them: a connection each, and readers."""
# ruff: noqa: S101, D102 - helpers of tests; their names say what they do

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, field
from operator import methodcaller
from typing import TYPE_CHECKING, Any, TypeVar

import amqp

from worker.transport.capabilities import connect

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kombu.connection import Connection

T = TypeVar("T")

PATIENCE = 20.0
#: Seconds for which a look that may have to be repeated waits for the broker.
_MOMENT = 0.01
_NO_ROUTE = 312


@dataclass(frozen=True, slots=True)
class Features:
    """What a transport claims to be: the suite holds it to that and to no more."""

    #: Other processes that open the URL see the same broker.
    shared: bool = True
    #: Seconds after which what a consumer was not given will not come. 0 where ``drain_events``
    #: fetches: then nothing is anybody's before, and ``timeout=0`` finds all that there is.
    lag: float = 0.0
    #: What several consumers give back is delivered again in the order in which it was published,
    #: whoever gave it back when. (What one gives back is so with every transport.)
    keeps_places: bool = True
    #: Its channels have ``publish_many``, its connections ``settle``: a batch is one step.
    batches: bool = False
    #: It has ``x-consistent-hash`` exchanges; else ``BCC`` headers and alternate exchanges, by
    #: which publishers name the slot of a key.
    spreads_keys: bool = False
    #: Its queues take ``x-max-priority``.
    priorities: bool = False
    #: Where the consumer of a single-active queue was cancelled, the next one is given nothing
    #: until all that the cancelled one holds is settled.
    waits_after_cancel: bool = False
    #: What each queue is declared with.
    queue: Mapping[str, Any] = field(default_factory=dict)
    #: What a queue in which messages wait for a retry is declared with besides.
    retry_queue: Mapping[str, Any] = field(default_factory=dict)


class Reader:
    """One consumer on a channel of its own, and what it was given."""

    def __init__(self, connection: Connection, queue: str, prefetch: int, lag: float) -> None:
        self.connection = connection
        self.channel: Any = connection.channel()
        self.channel.auto_decode = False  # bodies stay bytes
        self.channel.basic_qos(0, prefetch, False)
        self.given: list[amqp.Message] = []
        self.tag: str = self.channel.basic_consume(queue, callback=self.given.append)
        self._lag = lag
        self._seen = 0

    def take(self, count: int) -> list[int]:
        """Wait until ``count`` more were given; return the numbers of all that were."""
        wanted = self._seen + count
        deadline = time.monotonic() + PATIENCE
        while len(self.given) < wanted:
            missing = f"{wanted - len(self.given)} of {count} were not given: {self.given}"
            assert time.monotonic() < deadline, missing
            with suppress(TimeoutError):
                self.connection.drain_events(timeout=_MOMENT)
        return [int(message.body) for message in self._news()]

    def rest(self) -> list[int]:
        """Return the numbers of what is given although nobody waits for it."""
        deadline = time.monotonic() + self._lag
        while True:
            try:
                self.connection.drain_events(timeout=min(self._lag, _MOMENT))
            except TimeoutError:
                if time.monotonic() >= deadline:
                    return [int(message.body) for message in self._news()]

    def ack(self, number: int, *, multiple: bool = False) -> None:
        """Acknowledge the message with this number, as it was given last."""
        tags = [m.delivery_tag for m in self.given if int(m.body) == number]
        self.channel.basic_ack(tags[-1], multiple=multiple)

    def _news(self) -> list[amqp.Message]:
        news = self.given[self._seen :]
        self._seen = len(self.given)
        return news


class Peer:
    """One connection, a channel on which it publishes with confirms, and its readers."""

    def __init__(self, connection: Connection, features: Features) -> None:
        self.connection = connection
        self.features = features
        self.returned: list[tuple[str, str, bytes]] = []
        self._publisher: Any = None
        self._published = 0
        self._unconfirmed: set[int] = set()

    def ask(self, question: Callable[[Any], T]) -> T:
        """Ask on a channel of its own, which an error may cost."""
        channel: Any = self.connection.channel()
        try:
            return question(channel)
        finally:
            channel.close()

    def declare(self, *queues: str, **arguments: Any) -> None:
        arguments = {**self.features.queue, **arguments}
        told = {"durable": True, "auto_delete": False, "arguments": arguments}
        for queue in queues:
            self.ask(methodcaller("queue_declare", queue, **told))

    def declare_exchange(self, name: str, kind: str, **arguments: Any) -> None:
        self.ask(
            lambda channel: channel.exchange_declare(
                name, kind, durable=True, auto_delete=False, arguments=arguments
            )
        )

    def bind(self, queue: str, exchange: str, routing_key: str = "") -> None:
        self.ask(lambda channel: channel.queue_bind(queue, exchange, routing_key))

    def depth(self, queue: str) -> int:
        """Return how many messages are ready in a queue."""
        return int(self.ask(lambda c: c.queue_declare(queue, passive=True).message_count))

    def wait_for_depth(self, queue: str, depth: int) -> None:
        self.wait_until(lambda: self.depth(queue) == depth)

    def publish(self, queue: str, *numbers: int) -> None:
        """Publish to a queue, the quick way; all is confirmed when this returns."""
        messages = [(message(b"%d" % number), "", queue) for number in numbers]
        if self.features.batches:
            assert self.ask(lambda c: c.publish_many([(*each, True) for each in messages])) == []
            return
        self.send(messages)
        assert self.returned == []

    def send(self, messages: list[tuple[amqp.Message, str, str]]) -> None:
        """Publish (message, exchange, routing key), all mandatory, and wait for the confirms."""
        if self._publisher is None:
            self._publisher = self.connection.channel()
            self._publisher.auto_decode = False
            self._publisher.confirm_select()
            self._publisher.events["basic_ack"].add(self._confirm)
            self._publisher.events["basic_return"].add(self._return)
        for one, exchange, key in messages:
            self._published += 1
            self._unconfirmed.add(self._published)
            self._publisher.basic_publish(one, exchange, key, mandatory=True)
        self.wait_until(lambda: not self._unconfirmed)

    def read(self, queue: str, prefetch: int = 0) -> Reader:
        return Reader(self.connection, queue, prefetch, self.features.lag)

    def bodies(self, queue: str, count: int) -> list[int]:
        """Take ``count`` messages off a queue, and what is more; return their numbers."""
        reader = self.read(queue)
        numbers = reader.take(count) + reader.rest()
        for number in numbers[-1:]:
            reader.ack(number, multiple=True)
        reader.channel.close()
        return numbers

    def wait_until(self, condition: Callable[[], object]) -> None:
        """Drain the connection until ``condition`` holds; fail when that takes too long."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, f"not within {PATIENCE:g} s"
            with suppress(TimeoutError):
                self.connection.drain_events(timeout=_MOMENT)

    def close(self) -> None:
        """Close the connection in order; may be called again."""
        self.connection.release()

    def _confirm(self, tag: int, multiple: bool) -> None:  # noqa: FBT001 - py-amqp's signature
        told = {each for each in self._unconfirmed if each <= tag} if multiple else {tag}
        assert told <= self._unconfirmed, "confirmed twice, or never published"
        self._unconfirmed -= told

    def _return(self, error: Any, exchange: str, key: str, returned: amqp.Message) -> None:
        assert error.reply_code == _NO_ROUTE
        self.returned.append((exchange, key, bytes(returned.body)))


def connect_to(url: str) -> Connection:
    """Connect to a broker that the runtime knows."""
    return connect(url, heartbeat=0, timeout=10, name="conformance")


def message(body: bytes, **properties: Any) -> amqp.Message:
    """Return a persistent message."""
    return amqp.Message(body, delivery_mode=2, **properties)
