"""Leases in PostgreSQL, for supervisors on any number of machines.

A call is one transaction: lock the service's row, apply the rules to its book, write it back. The
clock is the server's.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from worker.errors import LeasesUnavailable
from worker.leases.base import LeaseStore, check_text
from worker.leases.rules import Book
from worker.stores.postgres import Database, Kind, alone

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker.leases.base import LeaseOptions, Sync, View
    from worker.stores.postgres import Line

_TABLE = """CREATE TABLE IF NOT EXISTS qworker_leases (
    service text PRIMARY KEY, book text NOT NULL)"""
_IS_THERE = "SELECT to_regclass('qworker_leases') IS NOT NULL"
_LOCK = """SELECT book, extract(epoch FROM clock_timestamp())::float8
    FROM qworker_leases WHERE service = %s FOR UPDATE"""
#: A new service has no row to lock, so an empty book is put there first; and what another put there
#: at the same moment is locked by it.
_BEGIN = """INSERT INTO qworker_leases VALUES (%s, %s)
    ON CONFLICT (service) DO UPDATE SET book = qworker_leases.book"""
_WRITE = "UPDATE qworker_leases SET book = %s WHERE service = %s"
_KIND = Kind("lease", "the table qworker_leases", LeasesUnavailable)


class PostgresLeases(LeaseStore):
    """Leases of ``postgresql://…``. As durable as the database."""

    reach = "postgresql: for every supervisor that reaches the server"

    def __init__(self, url: str, options: LeaseOptions) -> None:
        self._options = options
        self._database = Database(url, _KIND, options.timeout, _prepare)

    @classmethod
    def open(cls, url: str, options: LeaseOptions) -> PostgresLeases:
        """Open ``postgresql://[user[:password]@][host][:port]/database[?sslmode=…]``.

        Makes the table ``qworker_leases`` where it is not there yet.
        """
        store = cls(url, options)
        with store._database.talking(opening=True):
            pass
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

    def services(self) -> list[str]:
        """Return the services that are known."""
        with self._transaction() as db:
            return [row[0] for row in db.execute("SELECT service FROM qworker_leases")]

    def close(self) -> None:
        """Disconnect; the next call connects again."""
        self._database.close()

    def _lock(self, db: Line, service: str) -> tuple[Book, float]:
        """Return a service's book, nobody else's until the transaction ends, and the time."""
        row = db.execute(_LOCK, (service,)).fetchone()
        if row is None:
            db.execute(_BEGIN, (service, Book().dump()))
            row = db.execute(_LOCK, (service,)).fetchone()
            assert row is not None  # noqa: S101 - it is locked
        return self._load(service, row[0]), row[1]

    def _load(self, service: str, book: str | None) -> Book:
        where = f"{self._database.shown}, table qworker_leases, service {service!r}"
        return Book.load(book, where)

    @contextmanager
    def _transaction(self) -> Iterator[Line]:
        """Run the block as one transaction, and tell its failures in this package's errors.

        What waiting cannot mend is a ConfigurationError at any time: whoever asks tells it apart.
        """
        with self._database.talking(opening=True) as line, line.transaction():
            yield line


def _prepare(line: Line) -> None:
    """Make the table where it is not there."""
    if line.execute(_IS_THERE).fetchone() == (False,):
        with alone(line):
            line.execute(_TABLE)
