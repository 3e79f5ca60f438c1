"""Leases in one SQLite file, shared by the supervisors of one machine.

A call is one IMMEDIATE transaction: read the service's book, apply the rules, write it back. The
clock is the machine's monotonic one, which all of its processes share. After a reboot it is lower
than what was read last; then nothing counts as watched, as the rules have it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from worker.errors import LeasesUnavailable
from worker.leases.base import LeaseStore, check_text
from worker.leases.rules import Book
from worker.stores.sqlite import Layout, SqliteFile, path_of

if TYPE_CHECKING:
    import sqlite3
    from pathlib import Path

    from worker.leases.base import LeaseOptions, Sync, View

_SCHEMA = (
    """CREATE TABLE IF NOT EXISTS lease_books (
        service TEXT PRIMARY KEY, book TEXT NOT NULL) WITHOUT ROWID""",
)
_LAYOUT = Layout("lease", "lease_meta", 1, _SCHEMA, LeasesUnavailable)


class SqliteLeases(LeaseStore):
    """Leases of ``sqlite:///file``. They survive kill -9; a power cut ends their holders too."""

    reach = "sqlite: for the supervisors of one machine"

    def __init__(self, path: Path, options: LeaseOptions) -> None:
        self._options = options
        self._file = SqliteFile(path, _LAYOUT, options.timeout)

    @classmethod
    def open(cls, url: str, options: LeaseOptions) -> SqliteLeases:
        """Open ``sqlite:///relative.db`` or ``sqlite:////absolute.db``; creates the file."""
        store = cls(path_of(url, _LAYOUT.kind), options)
        store._file.open()
        return store

    def sync(self, service: str, sync: Sync) -> View:
        """Apply ``sync`` and return what is known after it."""
        check_text(sync.facts, "a member's facts")
        with self._file.transaction(durable=False) as db:
            book = self._read(db, service)
            floor = time.time_ns() // 1_000_000
            view = book.sync(sync, self._options, now=time.monotonic(), floor=floor)
            _write(db, service, book)
        return view

    def look(self, service: str) -> View:
        """Return what is known."""
        with self._file.transaction(durable=False) as db:
            return self._read(db, service).view()

    def write(self, service: str, name: str, version: int, text: str) -> bool:
        """Change a document by compare-and-set. On disk when it returns."""
        check_text(text, f"the document {name}")
        with self._file.transaction(durable=True) as db:
            book = self._read(db, service)
            written = book.write(name, version, text)
            _write(db, service, book)
        return written

    def services(self) -> list[str]:
        """Return the services that are known."""
        with self._file.transaction(durable=False) as db:
            return [row[0] for row in db.execute("SELECT service FROM lease_books")]

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _read(self, db: sqlite3.Connection, service: str) -> Book:
        row = db.execute("SELECT book FROM lease_books WHERE service = ?", (service,)).fetchone()
        where = f"lease store {self._file.path}, table lease_books, service {service!r}"
        return Book.load(None if row is None else row[0], where)


def _write(db: sqlite3.Connection, service: str, book: Book) -> None:
    db.execute("INSERT OR REPLACE INTO lease_books VALUES (?, ?)", (service, book.dump()))
