"""Exchanges of somebody else, that the service is bound to: without them everything else goes on.

Where they are it is bound to them when it connects. That is done again every few seconds: one that
was removed meanwhile, and made anew, has no bindings, and the broker tells nobody.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from amqp.exceptions import ChannelError

from worker.declaring import bind_foreign, not_there
from worker.errors import BrokerUnreachable
from worker.transport.inbound import losses

if TYPE_CHECKING:
    from collections.abc import Collection

    from kombu.connection import Connection

    from worker.topology import Topology

logger = logging.getLogger("worker")

#: Seconds after which it is bound again.
_AGAIN = 5.0


class Foreign:
    """Of one link. Used by the I/O thread only."""

    def __init__(self) -> None:
        #: When it is looked at again; monotonic.
        self.due = 0.0
        #: What was told of last: names that are missing, or what the broker refused.
        self._missing: set[str] = set()
        self._complaint = ""

    def tend(self, connection: Connection, topologies: Collection[Topology], now: float) -> None:
        """Bind what is there, and tell what is not. Raises BrokerUnreachable."""
        self.due = now + _AGAIN
        if not any(each.foreign for each in topologies):
            return
        try:
            missing = _bind(connection, topologies)
        except ChannelError as error:
            if str(error) != self._complaint:
                self._complaint = str(error)
                logger.warning("not bound until this is mended: %s", error)
        except losses(connection) as error:
            raise BrokerUnreachable(f"the connection to the broker is lost: {error}") from None
        else:
            self._complaint = ""
            self._tell(missing)

    def _tell(self, missing: set[str]) -> None:
        if new := sorted(missing - self._missing):
            logger.warning("%s; nothing comes from there until it is", not_there(new))
        for name in sorted(self._missing - missing):
            logger.info("the exchange %r is there, and bound", name)
        self._missing = missing


def _bind(connection: Connection, topologies: Collection[Topology]) -> set[str]:
    channel = connection.channel()
    missing = {name for each in topologies for name in bind_foreign(channel, each)}
    channel.close()
    return missing
