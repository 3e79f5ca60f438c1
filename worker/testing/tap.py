"""A connection of the test's own: publishes anything, hears everything, looks into queues."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import amqp

from worker.declaring import declare_exchange
from worker.message import Command, schema_of
from worker.topology import public_exchanges
from worker.transport.arrival import Arrival
from worker.transport.capabilities import connect
from worker.transport.inbound import release

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from worker.config import Settings
    from worker.topology import Topology

#: Hears what is published on the two public exchanges.
_QUEUE = "qworker.testing"


class Tap:
    """Listens on the broker of ``settings``, which runs in this process.

    There it stands in for those who declare the exchanges that are bound with ``declare=False``.
    """

    def __init__(self, settings: Settings, topology: Topology) -> None:
        self._commands = settings.commands_exchange
        self._connection = connect(settings.broker, heartbeat=0, timeout=1, name="qworker testing")
        self._channel: Any = self._connection.channel()
        self._welcome: set[str] = set()
        self._arrivals: list[Arrival] = []
        foreign = [replace(each, foreign=False) for each in topology.exchanges if each.foreign]
        for exchange in (*public_exchanges(settings), *foreign):
            declare_exchange(self._channel, exchange)
        self._channel.queue_declare(_QUEUE, auto_delete=False)
        self._channel.queue_bind(_QUEUE, settings.events_exchange, "#")

    def close(self) -> None:
        """Disconnect; never raises."""
        release(self._connection)

    def welcome_commands(self) -> None:
        """Receive the commands to every service that the program knows a command of.

        As if each of them had been started once: a command that nobody receives is an error.
        """
        for recipient in _recipients(Command) - self._welcome:
            self._channel.queue_bind(_QUEUE, self._commands, recipient)
            self._welcome.add(recipient)

    def publish(
        self,
        body: bytes,
        properties: Mapping[str, Any],
        headers: Mapping[str, Any],
        exchange: str,
        routing_key: str,
    ) -> None:
        """Publish a message with nothing but these properties."""
        message = amqp.Message(body, **properties)
        if headers:
            message.properties["application_headers"] = dict(headers)
        self._channel.basic_publish(message, exchange, routing_key)

    def arrivals(self) -> list[Arrival]:
        """Return everything that was published on the public exchanges, in order."""
        while (message := self._channel.basic_get(_QUEUE, no_ack=True)) is not None:
            self._arrivals.append(Arrival.of(message))
        return self._arrivals

    def look_into(self, queue: str) -> list[Arrival]:
        """Return what lies in ``queue``, in order, and leave it there."""
        channel: Any = self._connection.channel()
        try:
            return [Arrival.of(message) for message in iter(lambda: channel.basic_get(queue), None)]
        finally:
            channel.close()  # puts it back where it was


def _recipients(kind: type[Command]) -> set[str]:
    """Return the services that ``kind`` and the classes derived from it are commands to."""
    return {schema.to for one in _family(kind) if (schema := schema_of(one)) and schema.to}


def _family(kind: type[Command]) -> Iterator[type[Command]]:
    yield kind
    for derived in kind.__subclasses__():
        yield from _family(derived)
