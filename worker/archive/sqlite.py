"""The archive in an SQLite file, for the processes of one machine.

``AUTOINCREMENT`` keeps a place from being given away twice where the newest events were removed.
SQLite has one writer at a time, so places rise in the order of commits by themselves.
"""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from worker.archive.base import NoArchive
from worker.archive.queries import Queries
from worker.errors import ArchiveUnavailable
from worker.stores.sqlite import Layout, SqliteFile, path_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from worker.archive.base import ArchiveOptions
    from worker.archive.entry import Entry
    from worker.archive.queries import Row

_SCHEMA = (
    """CREATE TABLE IF NOT EXISTS archive_events (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, name TEXT NOT NULL,
        key TEXT, time INTEGER NOT NULL, at INTEGER NOT NULL, headers TEXT NOT NULL,
        properties TEXT NOT NULL, body BLOB NOT NULL)""",
    "CREATE INDEX IF NOT EXISTS archive_keys ON archive_events (key) WHERE key IS NOT NULL",
    "CREATE INDEX IF NOT EXISTS archive_names ON archive_events (name)",
    "CREATE INDEX IF NOT EXISTS archive_times ON archive_events (time)",
    """CREATE TABLE IF NOT EXISTS archive_documents (
        name TEXT PRIMARY KEY, version INTEGER NOT NULL, text TEXT NOT NULL) WITHOUT ROWID""",
)
_META = "archive_meta"
_LAYOUT = Layout("archive", _META, 1, _SCHEMA, ArchiveUnavailable)
_HAS_TABLE = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?"
_INSERT = """INSERT OR IGNORE INTO archive_events
    (id, name, key, time, headers, properties, body, at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"""


class SqliteArchive(Queries):
    """An archive of ``sqlite:///file``. On disk when ``add`` returns."""

    events, texts = "archive_events", "archive_documents"
    has_id, has_key, has_name = "id = :id", "key = :key", "name = {}"
    matches = "qworker_matches({}, name)"
    unindexed = "+{}"  # SQLite would take an index for it, and sort all that it finds

    def __init__(self, path: Path, timeout: float) -> None:
        self._file = SqliteFile(path, _LAYOUT, timeout)

    @classmethod
    def open(cls, url: str, options: ArchiveOptions) -> SqliteArchive:
        """Open ``sqlite:///relative.db`` or ``sqlite:////absolute.db``; creates the file."""
        path = path_of(url, _LAYOUT.kind)
        if not options.creates:
            if not path.exists():
                raise NoArchive(url, "there is no such file")
            if not _has_archive(path):
                raise NoArchive(url, "there is no archive in this file")
        store = cls(path, options.timeout)
        store._file.open()
        return store

    def add(self, entries: Sequence[Entry]) -> int:
        """Store events in their order; return how many were not there yet."""
        rows = [(*entry[:7], entry.at) for entry in entries]
        with self._file.transaction(durable=True) as db:
            return max(0, db.executemany(_INSERT, rows).rowcount)

    def ask(self, sql: str, parameters: Mapping[str, Any]) -> list[Row]:
        """Return the rows of a query."""
        with self._file.reading() as db:
            if "qworker_matches" in sql:
                # Once a query, since nobody tells when the connection is a new one.
                db.create_function("qworker_matches", 2, _matches, deterministic=True)
            return db.execute(sql, parameters).fetchall()

    def change(self, sql: str, parameters: Mapping[str, Any]) -> int:
        """Make a change in a transaction of its own; return how many rows there were."""
        with self._file.transaction(durable=True) as db:
            return db.execute(sql, parameters).rowcount

    def bytes_used(self) -> int:
        """Return the size of the file, and of what is not yet merged into it."""
        files = (self._file.path, self._file.path.with_name(f"{self._file.path.name}-wal"))
        return sum(file.stat().st_size for file in files if file.exists())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _has_archive(path: Path) -> bool:
    """Tell whether an archive is in a file, which may be somebody else's: nothing is written.

    Not even the files beside it that readers of a database in WAL mode share, where nobody has it
    open (``immutable``).
    """
    is_open = path.with_name(f"{path.name}-wal").exists()
    uri = f"{path.absolute().as_uri()}?mode=ro{'' if is_open else '&immutable=1'}"
    try:
        with closing(sqlite3.connect(uri, uri=True)) as db:
            return db.execute(_HAS_TABLE, (_META,)).fetchone() is not None
    except sqlite3.Error:  # whoever opens it tells better what is wrong
        return True


@lru_cache(maxsize=1 << 16)
def _matches(expression: str, name: str) -> bool:
    return re.search(expression, f".{name}") is not None
