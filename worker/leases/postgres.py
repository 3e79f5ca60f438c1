"""Leases in PostgreSQL, for supervisors on any number of machines.

A call is one transaction: lock the service's row, apply the rules to its book, write it back. The
clock is the server's.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psycopg

from worker.config import mask_url
from worker.errors import ConfigurationError, LeasesUnavailable
from worker.leases.base import LeaseStore, check_text
from worker.leases.rules import Book

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker.leases.base import LeaseOptions, Sync, View

_TABLE = """CREATE TABLE IF NOT EXISTS qworker_leases (
    service text PRIMARY KEY, book text NOT NULL)"""
#: Two that create a table at the same moment disturb each other, also with IF NOT EXISTS.
_ONE_AT_A_TIME = "SELECT pg_advisory_xact_lock(7163120461)"
_LOCK = """SELECT book, extract(epoch FROM clock_timestamp())::float8
    FROM qworker_leases WHERE service = %s FOR UPDATE"""
#: A new service has no row to lock, so an empty book is put there first; and what another put there
#: at the same moment is locked by it.
_BEGIN = """INSERT INTO qworker_leases VALUES (%s, %s)
    ON CONFLICT (service) DO UPDATE SET book = qworker_leases.book"""
_WRITE = "UPDATE qworker_leases SET book = %s WHERE service = %s"
#: What a server says of a wrong user, password or database: waiting does not mend it.
_REFUSALS = ("authentication failed", "does not exist", "no pg_hba.conf entry")


class PostgresLeases(LeaseStore):
    """Leases of ``postgresql://…``. As durable as the database."""

    reach = "postgresql: for every supervisor that reaches the server"

    def __init__(self, url: str, options: LeaseOptions) -> None:
        self._url = url
        self._options = options
        self._connection: psycopg.Connection[tuple[str, float]] | None = None

    @classmethod
    def open(cls, url: str, options: LeaseOptions) -> PostgresLeases:
        """Open ``postgresql://[user[:password]@][host][:port]/database[?sslmode=…]``.

        Makes the table ``qworker_leases`` where it is not there yet.
        """
        store = cls(url, options)
        with store._transaction() as db:
            found = db.execute("SELECT to_regclass('qworker_leases')").fetchone()
            if found is None or found[0] is None:
                db.execute(_ONE_AT_A_TIME)
                db.execute(_TABLE)
        return store

    def sync(self, service: str, sync: Sync) -> View:
        """Apply ``sync`` and return what is known after it."""
        check_text(sync.facts, "a member's facts")
        with self._transaction() as db:
            book, now = self._lock(db, service)
            view = book.sync(sync, self._options, now=now, floor=int(now * 1000))
            db.execute(_WRITE, (book.dump(), service))
        return view

    def look(self, service: str) -> View:
        """Return what is known."""
        with self._transaction() as db:
            row = db.execute(_LOCK.removesuffix("FOR UPDATE"), (service,)).fetchone()
        return self._load(service, None if row is None else row[0]).view()

    def write(self, service: str, name: str, version: int, text: str) -> bool:
        """Change a document by compare-and-set."""
        check_text(text, f"the document {name}")
        with self._transaction() as db:
            book, _ = self._lock(db, service)
            written = book.write(name, version, text)
            db.execute(_WRITE, (book.dump(), service))
        return written

    def close(self) -> None:
        """Disconnect; the next call connects again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _lock(self, db: psycopg.Connection[tuple[str, float]], service: str) -> tuple[Book, float]:
        """Return a service's book, nobody else's until the transaction ends, and the time."""
        row = db.execute(_LOCK, (service,)).fetchone()
        if row is None:
            db.execute(_BEGIN, (service, Book().dump()))
            row = db.execute(_LOCK, (service,)).fetchone()
            assert row is not None  # noqa: S101 - it is locked
        return self._load(service, row[0]), row[1]

    def _load(self, service: str, book: str | None) -> Book:
        where = f"lease store {mask_url(self._url)}, table qworker_leases, service {service!r}"
        return Book.load(book, where)

    @contextmanager
    def _transaction(self) -> Iterator[psycopg.Connection[tuple[str, float]]]:
        """Run the block as one transaction, and tell its failures in this package's errors."""
        try:
            if self._connection is None:
                self._connection = self._connect()
            with self._connection.transaction():
                yield self._connection
        except psycopg.Error as error:
            self.close()
            where = f"lease store {mask_url(self._url)}"
            text = mask_url(str(error).strip()) or type(error).__name__
            refused = isinstance(error, psycopg.OperationalError) and any(
                words in text for words in _REFUSALS
            )
            wrong = isinstance(error, psycopg.ProgrammingError)
            if refused or wrong:
                raise ConfigurationError(
                    f"{where}: {text}; write postgresql://user:password@host/database, of a user"
                    " that may use, and at first create, the table qworker_leases"
                ) from None
            raise LeasesUnavailable(f"{where}: {text}") from None
        except BaseException:
            self.close()
            raise

    def _connect(self) -> psycopg.Connection[tuple[str, float]]:
        milliseconds = math.ceil(self._options.timeout * 1000)
        return psycopg.connect(
            self._url,
            autocommit=True,
            connect_timeout=math.ceil(self._options.timeout),
            tcp_user_timeout=milliseconds,  # a server that vanished without a word
            options=f"-c statement_timeout={milliseconds} -c lock_timeout={milliseconds}",
            application_name="qworker leases",
        )
