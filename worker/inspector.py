"""Looks at what a broker has, and changes nothing."""

from __future__ import annotations

import os
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

import amqp.exceptions

from worker.errors import BrokerUnreachable
from worker.topology import shard_queue
from worker.transport.capabilities import capabilities_of, connect
from worker.transport.inbound import release

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.config import Settings

T = TypeVar("T")


class Depth(NamedTuple):
    """How full a queue is, and how many consume it."""

    ready: int
    consumers: int


class Inspector:
    """One connection for looking. A context manager; raises BrokerUnreachable throughout."""

    def __init__(self, service: str, settings: Settings) -> None:
        self._url = settings.broker
        self._connection = connect(
            settings.broker,
            heartbeat=0,
            timeout=settings.connect_timeout,
            name=f"qworker {service} look {os.getpid()}",
        )
        self._channel: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        release(self._connection)

    @property
    def product(self) -> str:
        """What answers, such as ``RabbitMQ 3.13.7``."""
        able = capabilities_of(self._url)
        if able.embedded:
            return f"the embedded broker ({able.scheme})"
        told = self._connection.connection.server_properties
        return f"{told.get('product', 'an AMQP broker')} {told.get('version', '')}".strip()

    def depth(self, queue: str) -> Depth | None:
        """Return how full a queue is; None where there is no such queue."""
        try:
            found = self.ask(lambda channel: channel.queue_declare(queue, passive=True))
        except amqp.exceptions.NotFound:
            return None
        except amqp.exceptions.ResourceLocked:  # an exclusive one of another connection
            return Depth(0, 1)
        return Depth(int(found.message_count), int(found.consumer_count))

    def shards(self, prefix: str, generation: int) -> int:
        """Return how many shard queues there are, counted from the first to the first missing."""
        return next(n for n in count() if self.depth(shard_queue(prefix, generation, n)) is None)

    def has_exchange(self, name: str) -> bool:
        """Tell whether there is such an exchange."""
        try:
            # A passive declaration looks at the name alone.
            self.ask(lambda channel: channel.exchange_declare(name, "direct", passive=True))
        except amqp.exceptions.NotFound:
            return False
        return True

    def ask(self, question: Callable[[Any], T]) -> T:
        """Ask ``question`` of an open channel.

        What the broker refuses comes as amqp's ChannelError, or as what ``question`` makes of it.
        """
        if self._channel is None or not self._channel.is_open:
            self._channel = self._open()
        try:
            return question(self._channel)
        except amqp.exceptions.ChannelError:
            raise
        except (*self._connection.connection_errors, OSError) as error:
            raise BrokerUnreachable(f"the broker ended the connection: {error}") from None

    def _open(self) -> Any:
        try:
            return self._connection.channel()
        except (*self._connection.connection_errors, OSError) as error:
            raise BrokerUnreachable(f"the broker ended the connection: {error}") from None
