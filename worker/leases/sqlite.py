"""Leases in one SQLite file, shared by the supervisors of one machine.

A call is one IMMEDIATE transaction: read the service's book, apply the rules, write what changed.
The clock is the machine's monotonic one, which all of its processes share. After a reboot it is
lower than what was read last; then nothing counts as watched, as the rules have it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from worker.errors import LeasesUnavailable
from worker.leases.base import Document, LeaseStore, check_text
from worker.leases.rules import Book, LeaseRow, MemberRow
from worker.stores.sqlite import Layout, SqliteFile, path_of

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from worker.leases.base import LeaseOptions, Sync, View

_SCHEMA = (
    """CREATE TABLE IF NOT EXISTS lease_services (
        service TEXT PRIMARY KEY, watched REAL NOT NULL, read_at REAL) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS lease_members (
        service TEXT NOT NULL, name TEXT NOT NULL, facts TEXT NOT NULL, until REAL NOT NULL,
        PRIMARY KEY (service, name)) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS lease_leases (
        service TEXT NOT NULL, name TEXT NOT NULL, owner TEXT NOT NULL, epoch INTEGER NOT NULL,
        until REAL NOT NULL, PRIMARY KEY (service, name)) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS lease_documents (
        service TEXT NOT NULL, name TEXT NOT NULL, version INTEGER NOT NULL, text TEXT NOT NULL,
        PRIMARY KEY (service, name)) WITHOUT ROWID""",
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
            book = _read(db, service)
            members, leases = dict(book.members), dict(book.leases)
            floor = time.time_ns() // 1_000_000
            view = book.sync(sync, self._options, now=time.monotonic(), floor=floor)
            db.execute(
                "INSERT OR REPLACE INTO lease_services VALUES (?, ?, ?)",
                (service, book.watched, book.read_at),
            )
            _save(db, "lease_members", service, members, book.members)
            _save(db, "lease_leases", service, leases, book.leases)
        return view

    def look(self, service: str) -> View:
        """Return what is known."""
        with self._file.transaction(durable=False) as db:
            return _read(db, service).view()

    def write(self, service: str, name: str, version: int, text: str) -> bool:
        """Change a document by compare-and-set. On disk when it returns."""
        check_text(text, f"the document {name}")
        with self._file.transaction(durable=True) as db:
            book = _read(db, service)
            documents = dict(book.documents)
            written = book.write(name, version, text)
            _save(db, "lease_documents", service, documents, book.documents)
        return written

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _read(db: sqlite3.Connection, service: str) -> Book:
    def rows(table: str) -> Iterator[tuple[str, tuple[Any, ...]]]:
        question = f"SELECT * FROM {table} WHERE service = ?"  # noqa: S608 - a name of our own
        for _, name, *row in db.execute(question, (service,)):
            yield name, tuple(row)

    book = Book(
        members={name: MemberRow(*row) for name, row in rows("lease_members")},
        leases={name: LeaseRow(*row) for name, row in rows("lease_leases")},
        documents={name: Document(*row) for name, row in rows("lease_documents")},
    )
    for _, watched, read_at in db.execute(
        "SELECT * FROM lease_services WHERE service = ?", (service,)
    ):
        book.watched, book.read_at = watched, read_at
    return book


def _save(
    db: sqlite3.Connection,
    table: str,
    service: str,
    before: Mapping[str, tuple[Any, ...]],
    after: Mapping[str, tuple[Any, ...]],
) -> None:
    """Write what changed of a table's rows of ``service``."""
    gone = [(service, name) for name in before.keys() - after.keys()]
    db.executemany(f"DELETE FROM {table} WHERE service = ? AND name = ?", gone)  # noqa: S608 - a name of our own
    new = [(service, name, *row) for name, row in after.items() if before.get(name) != row]
    if new:
        marks = ", ".join("?" * len(new[0]))
        db.executemany(f"INSERT OR REPLACE INTO {table} VALUES ({marks})", new)  # noqa: S608 - as above
