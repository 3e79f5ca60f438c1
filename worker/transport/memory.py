"""The embedded broker in this process's memory, as a kombu transport, for tests above all.

::

    kombu.Connection(transport="worker.transport.memory:Transport", virtual_host="name")

Connections of one name share one broker, from any thread. It is the broker of
``worker.transport.sqlite``, with the same options and the same code, but what it holds ends with
the process or with ``forget(name)``.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from worker.transport import sqlite
from worker.transport.embedded.database import MemoryDatabase

if TYPE_CHECKING:
    from worker.transport.embedded.database import Database

_DEFAULT_NAME = "default"

# The one state that this package keeps in a module: kombu makes a transport for every connection
# from a class that it finds by name, so what its connections share has no other home.
_databases: dict[str, MemoryDatabase] = {}
_databases_lock = threading.Lock()


class Transport(sqlite.Transport):
    """kombu's way to a broker in memory."""

    driver_type = "memory"
    #: The broker does not end with its connections, so neither does what it holds.
    keeps_transient = True

    def _open(self, patience: float) -> Database:  # noqa: ARG002 - nothing waits for a lock here
        hostname = self.client.hostname
        name = self.client.virtual_host.strip("/")
        if not name:  # kombu's own default is no name
            name = hostname if hostname and hostname != "localhost" else _DEFAULT_NAME
        with _databases_lock:
            if name not in _databases:
                _databases[name] = MemoryDatabase(name)
            return _databases[name]


def forget(name: str = _DEFAULT_NAME) -> None:
    """Drop the broker ``name`` with all that it holds; its connections find themselves closed."""
    with _databases_lock:
        database = _databases.pop(name, None)
    if database is not None:
        database.forget()
