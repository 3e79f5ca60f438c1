"""The half of a channel that declares: exchanges, queues and bindings."""

# ruff: noqa: ARG002, FBT001, FBT002, PLR0913, PLR0917 - the signatures are py-amqp's and kombu's

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from amqp import exceptions
from amqp.protocol import queue_declare_ok_t
from kombu.transport import base

from worker.transport.embedded.declarations import (
    QUEUE_BIND,
    QUEUE_DECLARE,
    QUEUE_DELETE,
    QUEUE_PURGE,
    no_queue,
)
from worker.transport.routing import Destination

if TYPE_CHECKING:
    from collections.abc import Mapping

    from worker.transport.embedded.broker import Broker
    from worker.transport.embedded.catalog import Queue
    from worker.transport.embedded.connection import Connection


class DeclaringChannel(base.StdChannel):
    """A channel's connection, and what can be declared through it."""

    def __init__(self, connection: Connection, channel_id: int) -> None:
        self.connection: Connection | None = connection
        self.channel_id = channel_id
        #: The queue that is meant where none is named: the one declared last.
        self._last_queue = ""

    def exchange_declare(
        self,
        exchange: str,
        type: str,  # noqa: A002 - py-amqp's name
        passive: bool = False,
        durable: bool = False,
        auto_delete: bool = True,
        nowait: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Declare an exchange. Raises NotFound, PreconditionFailed, AccessRefused."""
        self._broker.declarations.declare_exchange(
            exchange,
            type,
            passive=passive,
            durable=durable,
            auto_delete=auto_delete,
            arguments=arguments,
        )

    def exchange_delete(self, exchange: str, if_unused: bool = False, nowait: bool = False) -> None:
        """Delete an exchange. Raises PreconditionFailed where it is in use."""
        self._broker.declarations.delete_exchange(exchange, if_unused=if_unused)

    def exchange_bind(
        self,
        destination: str,
        source: str = "",
        routing_key: str = "",
        nowait: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Bind an exchange to another. Raises NotFound."""
        target = Destination(destination, is_queue=False)
        self._broker.declarations.bind(source, target, routing_key, arguments)

    def exchange_unbind(
        self,
        destination: str,
        source: str = "",
        routing_key: str = "",
        nowait: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Remove the binding of an exchange to another."""
        target = Destination(destination, is_queue=False)
        self._broker.declarations.unbind(source, target, routing_key, arguments)

    def queue_declare(
        self,
        queue: str = "",
        passive: bool = False,
        durable: bool = False,
        exclusive: bool = False,
        auto_delete: bool = True,
        nowait: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> queue_declare_ok_t:
        """Declare a queue; an empty name makes one up. Returns its name, depth and consumers.

        Raises NotFound, PreconditionFailed, AccessRefused, and ResourceLocked where it is
        another connection's.
        """
        broker = self._broker
        if exclusive:
            broker.presence.renew()  # from now on the connection has something to lose

        def declare() -> Queue:
            return broker.declarations.declare_queue(
                (queue or self._last_queue) if passive else queue,
                passive=passive,
                durable=durable,
                auto_delete=auto_delete,
                connection=broker.presence.id if exclusive else None,
                arguments=arguments,
            )

        declared = declare()
        if self._is_foreign(declared):
            # Its connection may be dead and not yet cleared up after.
            broker.presence.clear_up_after_others()
            declared = declare()
            self._check_own(declared, QUEUE_DECLARE)
        self._last_queue = declared.name
        depth = broker.depth(declared)
        return queue_declare_ok_t(declared.name, depth.ready, depth.consumers)

    def queue_bind(
        self,
        queue: str = "",
        exchange: str = "",
        routing_key: str = "",
        nowait: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Bind a queue to an exchange. Raises NotFound, ResourceLocked."""
        target = Destination(self._queue(queue, QUEUE_BIND).name, is_queue=True)
        self._broker.declarations.bind(exchange, target, routing_key, arguments)

    def queue_unbind(
        self,
        queue: str,
        exchange: str,
        routing_key: str = "",
        nowait: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Remove the binding of a queue."""
        target = Destination(queue or self._last_queue, is_queue=True)
        self._broker.declarations.unbind(exchange, target, routing_key, arguments)

    def queue_purge(self, queue: str = "", nowait: bool = False) -> int:
        """Remove the ready messages of a queue; return how many."""
        return self._broker.purge(self._queue(queue, QUEUE_PURGE))

    def queue_delete(
        self,
        queue: str = "",
        if_unused: bool = False,
        if_empty: bool = False,
        nowait: bool = False,
    ) -> int:
        """Delete a queue; return how many messages were ready. No error where there is none."""
        broker = self._broker
        try:
            found = self._queue(queue, QUEUE_DELETE)
        except exceptions.NotFound:
            return 0
        return broker.declarations.delete_queue(found, if_unused=if_unused, if_empty=if_empty)

    def prepare_queue_arguments(self, arguments: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Translate kombu's queue options into queue arguments."""
        prepared: dict[str, Any] = base.to_rabbitmq_queue_arguments(arguments, **kwargs)
        return prepared

    @property
    def _connection(self) -> Connection:
        connection = self.connection
        if connection is None or not connection.connected:
            raise exceptions.RecoverableConnectionError("the channel, or its connection, is closed")
        return connection

    @property
    def _broker(self) -> Broker:
        return self._connection.broker

    def _queue(self, name: str, method: tuple[int, int]) -> Queue:
        """Return the queue that a method names; the last declared one if it names none."""
        broker = self._broker
        name = name or self._last_queue
        broker.catalog.refresh()
        queue = broker.catalog.queue(name)
        if queue is not None and self._is_foreign(queue):
            broker.presence.clear_up_after_others()
            broker.catalog.refresh()
            queue = broker.catalog.queue(name)
        if queue is None:
            raise no_queue(name, method)
        self._check_own(queue, method)
        return queue

    def _is_foreign(self, queue: Queue) -> bool:
        return queue.exclusive and queue.connection != self._broker.presence.id

    def _check_own(self, queue: Queue, method: tuple[int, int]) -> None:
        if self._is_foreign(queue):
            raise exceptions.ResourceLocked(
                f"RESOURCE_LOCKED - cannot obtain exclusive access to locked queue {queue.name!r}",
                method,
            )
