"""The embedded broker in a file, as a kombu transport.

::

    kombu.Connection(transport="worker.transport.sqlite:Transport", virtual_host="/path/file.db")
    kombu.Connection("sqlite:////path/file.db", transport="worker.transport.sqlite:Transport")

The processes of one machine share the file, which must be on a local disk. What is published is
stored when publishing returns, persistent messages through a power cut; what a consumer held
when it died comes back at its place. ``worker.transport.embedded`` says how.

Transport options: ``lease``, the seconds (10) after which a connection that does not drain
events is taken for dead where its process cannot be seen to be; ``patience``, the seconds (5) to
wait for a locked file.

What is not durable (queues and exchanges declared so, messages with delivery mode 1) is kept while
anybody is connected: the first to connect after all others are gone finds it removed.
"""

from __future__ import annotations

from pathlib import Path
from sqlite3 import sqlite_version
from typing import TYPE_CHECKING, Any

from amqp import exceptions
from kombu.transport import base

from worker.transport.embedded.connection import Connection
from worker.transport.embedded.database import FileDatabase
from worker.transport.embedded.schema import install
from worker.transport.routing import EXCHANGE_TYPES

if TYPE_CHECKING:
    from worker.transport.embedded.channel import Channel
    from worker.transport.embedded.database import Database

_LEASE = 10.0
_PATIENCE = 5.0


class Transport(base.Transport):
    """kombu's way to the embedded broker. See the module for its options."""

    driver_type = "sqlite"
    driver_name = "sqlite3"
    connection_errors = (exceptions.ConnectionError,)
    channel_errors = (exceptions.ChannelError,)
    recoverable_connection_errors = (
        exceptions.RecoverableConnectionError,
        exceptions.MessageNacked,
    )
    recoverable_channel_errors = (exceptions.RecoverableChannelError,)
    implements = base.Transport.implements.extend(
        heartbeats=True,
        exchange_type=EXCHANGE_TYPES,
    )
    #: kombu's connection.
    client: Any
    #: Whether what is not durable outlives the last connection.
    keeps_transient = False

    def establish_connection(self) -> Connection:
        """Open a connection.

        Raises an irrecoverable amqp ConnectionError where the file cannot be used, and a
        recoverable one where it is locked.
        """
        options: dict[str, Any] = self.client.transport_options or {}
        database = self._open(float(options.get("patience", _PATIENCE)))
        try:
            install(database)
            connection = Connection(
                database,
                lease=float(options.get("lease", _LEASE)),
                keeps_transient=self.keeps_transient,
            )
        except BaseException:
            database.close()
            raise
        connection.client = self.client
        return connection

    def close_connection(self, connection: Connection) -> None:
        """Give everything back and close."""
        connection.client = None
        connection.close()

    def create_channel(self, connection: Connection) -> Channel:
        """Open a channel."""
        return connection.channel()

    def drain_events(self, connection: Connection, **kwargs: Any) -> None:
        """Deliver what is there, and wait for it up to ``timeout`` seconds."""
        connection.drain_events(**kwargs)

    def heartbeat_check(self, connection: Connection, rate: int = 2) -> None:  # noqa: ARG002 - kombu's
        """Renew the lease if it is time to."""
        connection.heartbeat_check()

    def get_heartbeat_interval(self, connection: Connection) -> float:
        """Return the seconds in which the lease must be renewed."""
        return connection.broker.presence.lease / 3

    def verify_connection(self, connection: Connection) -> bool:
        """Tell whether the connection is open."""
        return connection.connected

    def driver_version(self) -> str:
        """Return the version of SQLite."""
        return sqlite_version

    def _open(self, patience: float) -> Database:
        path: str = self.client.virtual_host or ""
        if path.strip("/") == "":
            raise exceptions.NotAllowed(
                "name the broker's file: sqlite:///relative.db or sqlite:////absolute.db"
            )
        return FileDatabase(Path(path).absolute(), patience=patience)
