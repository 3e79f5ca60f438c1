"""The retry queues that one consumer uses: a message waits there and returns by itself.

Each is declared when it is first needed, and again at every connection after that.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from amqp.exceptions import NotFound

from worker.declaring import declare_queue
from worker.errors import ConfigurationError
from worker.topology import RETRY_SECONDS, lay_out_retries
from worker.transport.capabilities import capabilities_of
from worker.transport.inbound import losses

if TYPE_CHECKING:
    from collections.abc import Collection

    from kombu.connection import Connection

    from worker.config import Settings
    from worker.topology import Queue

logger = logging.getLogger("worker")


class RetryQueues:
    """The retry queues of one service, as far as they are in use here. I/O thread only."""

    def __init__(self, service: str, settings: Settings) -> None:
        self._service = service
        self._settings = settings
        self._able = capabilities_of(settings.broker)
        self._in_use: dict[str, Queue] = {}

    @property
    def names(self) -> Collection[str]:
        """The names of those that are in use."""
        return self._in_use.keys()

    def declare(self, delay: float, connection: Connection | None) -> str | None:
        """Declare the retry queue for ``delay`` and return its name; None where it cannot be.

        A classic queue would lose what expires while the broker restarts.
        """
        if self._able.has_queue_types and self._settings.queue_type == "classic":
            return None
        queue = self._queue(delay)
        if queue.name not in self._in_use:
            if connection is None or not _declare(queue, connection):
                return None
            self._in_use[queue.name] = queue
        return queue.name

    def declare_again(self, connection: Connection) -> None:
        """Declare on another connection all that are in use."""
        for queue in self._in_use.values():
            _declare(queue, connection)

    def find(self, connection: Connection) -> None:
        """Use those too that the broker has."""
        for queue in map(self._queue, RETRY_SECONDS):
            if _exists(queue.name, connection):
                self._in_use[queue.name] = queue

    def _queue(self, seconds: float) -> Queue:
        return lay_out_retries(self._service, seconds, self._settings, self._able)


def _exists(queue: str, connection: Connection) -> bool:
    channel = connection.channel()  # of its own: asking for what is not there ends a channel
    try:
        channel.queue_declare(queue, passive=True)
    except NotFound:
        return False
    channel.close()
    return True


def _declare(queue: Queue, connection: Connection) -> bool:
    """Declare a retry queue and its exchange; tell whether that could be done."""
    try:
        channel = connection.channel()  # of its own: a refusal ends a channel
        declare_queue(channel, queue)
        channel.exchange_declare(queue.name, "fanout", durable=True, auto_delete=False)
        channel.queue_bind(queue.name, queue.name, "")
        channel.close()
    except ConfigurationError as error:
        logger.warning("retries wait in memory instead: %s", error)
        return False
    except losses(connection):
        return False  # whoever uses the connection next will notice
    return True
