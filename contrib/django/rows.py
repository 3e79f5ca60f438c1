"""The rows of the outbox, read and removed by connections of their own.

Each thread that asks has one, apart from Django's own of that thread: so what is read is what is
committed, and no transaction of somebody else is in the way. It stays open, as those of a pool; one
that turns out to be broken is opened anew, once. Each statement is committed by itself, also where
the settings have ``AUTOCOMMIT`` off (``contrib/sqlalchemy/rows.py`` says why).

Which rows may be sent already is another matter in each database; ``contrib/sqlalchemy/rows.py``
has the reasons, and the horizon is that of :mod:`worker.contrib.outbox.postgres`. On MySQL and
MariaDB ``read`` waits for open transactions that have inserted a row in that range.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import Error, connections
from django.utils.connection import ConnectionDoesNotExist
from worker.contrib.django.connecting import missing
from worker.contrib.identity import plain
from worker.contrib.outbox import EVERYTHING, entry_of
from worker.contrib.outbox.deadlocks import past_deadlocks, unavailable
from worker.contrib.outbox.postgres import HORIZON, PARAMETERS, WRITER

from worker import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from contrib.outbox.rows import Bounds, Entry

T = TypeVar("T")

_TABLE = "qworker_outbox"
_SCHEME = "django://"
_COLUMNS = (
    "transaction_id",  # the first: PostgreSQL reads it another way
    "sequence",
    "lane",
    "message_id",
    "exchange",
    "routing_key",
    "mandatory",
    "properties",
    "headers",
    "body",
)
#: For MySQL: what ``read`` waits for a row that somebody inserts, and that it locks no gaps.
_SET_UP = (
    "SET SESSION innodb_lock_wait_timeout = 1",
    "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
)


class OutboxRows:
    """The rows of a service; an :class:`~worker.contrib.outbox.OutboxStore`.

    ``using`` is the alias of their database.
    """

    def __init__(self, using: str, service: str) -> None:
        self._using = using
        self._service = plain(service)
        self._own = threading.local()
        self._lock = threading.Lock()
        self._all: list[Any] = []

    @classmethod
    def open(cls, url: str, service: str) -> OutboxRows:
        """Return those at ``django://ALIAS``; connects at the first use.

        Raises ConfigurationError where Django's settings have no such database.
        """
        using = url.removeprefix(_SCHEME) or "default"
        try:
            connections[using]
        except ConnectionDoesNotExist:
            known = ", ".join(sorted(connections))
            raise ConfigurationError(
                f"{url}: Django's settings have no database {using!r}; they have {known}"
            ) from None
        except ImproperlyConfigured as error:
            hint = " Run it as 'manage.py qworker outbox'." if not settings.configured else ""
            raise ConfigurationError(f"{url}: {error}{hint}") from None
        return cls(using, service)

    def check(self) -> None:
        """Raise ConfigurationError where there is no table."""

        def look(connection: Any, cursor: Any) -> bool:
            return _TABLE in connection.introspection.table_names(cursor)

        if not self._ask(look):
            raise missing(_TABLE, self._using)

    def horizon(self) -> int | None:
        """Return the first open transaction that may have written rows."""

        def look(connection: Any, cursor: Any) -> int | None:
            if connection.vendor != "postgresql":
                return None
            cursor.execute(HORIZON)
            return int(cursor.fetchone()[0])

        return self._ask(look)

    def newest(self) -> int:
        """Return the highest sequence number."""

        def look(_: Any, cursor: Any) -> int:
            query = f"SELECT max(sequence) FROM {_TABLE} WHERE service = %s"
            cursor.execute(query, [self._service])
            return int(cursor.fetchone()[0] or 0)

        return self._ask(look)

    def read(self, limit: int, within: Bounds = EVERYTHING) -> list[Entry]:
        """Return rows by their sequence numbers."""
        where = ["service = %s", "sequence > %s"]
        values: list[Any] = [self._service, within.after]
        if within.until is not None:
            where.append("sequence <= %s")
            values.append(within.until)
        if (lanes := within.lanes) is not None:
            where.append(f"lane IN {_places(lanes)}" if lanes else "1 = 0")
            values.extend(lanes)
        if within.without:
            where.append(f"lane NOT IN {_places(within.without)}")
            values.extend(within.without)

        def look(connection: Any, cursor: Any) -> list[Entry]:
            first, *others = map(connection.ops.quote_name, _COLUMNS)
            first = WRITER if connection.vendor == "postgresql" else first
            names = ", ".join([first, *others])
            query = f"SELECT {names} FROM {_TABLE} WHERE {' AND '.join(where)} ORDER BY sequence"
            locks = " LOCK IN SHARE MODE" if connection.vendor == "mysql" else ""
            cursor.execute(f"{query} LIMIT %s{locks}", [*values, limit])
            return [entry_of(dict(zip(_COLUMNS, row, strict=True))) for row in cursor.fetchall()]

        found: list[Entry] = past_deadlocks(lambda: self._ask(look))
        return found

    def remove(self, sequences: Sequence[int]) -> None:
        """Remove rows, but on PostgreSQL those that somebody has locked: a later pass does that."""
        if not sequences:
            return

        def do(connection: Any, cursor: Any) -> None:
            these = _places(sequences)
            if connection.vendor == "postgresql":
                free = f"SELECT sequence FROM {_TABLE} WHERE sequence IN {these}"
                these = f"({free} FOR UPDATE SKIP LOCKED)"
            cursor.execute(f"DELETE FROM {_TABLE} WHERE sequence IN {these}", [*sequences])

        past_deadlocks(lambda: self._ask(do))

    def close(self) -> None:
        """Close the connections. For when no one uses them."""
        with self._lock:
            connections_, self._all = self._all, []
        self._own = threading.local()
        for connection in connections_:
            with suppress(Error):
                connection.close()

    def _ask(self, what: Callable[[Any, Any], T]) -> T:
        """Call ``what`` with a connection and a cursor. Raises OutboxUnavailable.

        Twice, where the connection turns out to be broken that was open: that happens meanwhile.
        """
        connection = self._connection()
        was_open = connection.connection is not None
        try:
            return self._once(connection, what)
        except Error as error:
            is_broken = was_open and not connection.is_usable()
            with suppress(Error):
                connection.close()
            if is_broken:
                return self._ask(what)
            told = " ".join(str(error).split())
            raise unavailable(error.__cause__, f"the outbox in {self._using!r}: {told}") from error

    def _once(self, connection: Any, what: Callable[[Any, Any], T]) -> T:
        is_new = connection.connection is None
        if is_new:
            connection.set_autocommit(True)
        with connection.cursor() as cursor:
            if is_new and connection.vendor == "mysql":
                for statement in _SET_UP:
                    cursor.execute(statement)
            return what(connection, cursor)

    def _connection(self) -> Any:
        """Return that of this thread, which stays its own but for the end (:meth:`close`)."""
        connection = getattr(self._own, "connection", None)
        if connection is None:
            connection = self._own.connection = connections.create_connection(self._using)
            _have_patience(connection)
            connection.inc_thread_sharing()
            with self._lock:
                self._all.append(connection)
        return connection


def _have_patience(connection: Any) -> None:
    """Tell libpq what the settings do not say; a pool has its parameters already."""
    options = connection.settings_dict["OPTIONS"]
    if connection.vendor == "postgresql" and not options.get("pool"):
        told = {"OPTIONS": {**PARAMETERS, **options}}
        connection.settings_dict = {**connection.settings_dict, **told}


def _places(values: Collection[object]) -> str:
    """Return a list of as many values for a query."""
    return f"({', '.join(['%s'] * len(values))})"
