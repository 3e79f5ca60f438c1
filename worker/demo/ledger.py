"""What the handler did: a table of files as they are now, and a ledger that only grows.

Every effect is one transaction that writes both. Nothing here is unique but the path in the table
of files, and nothing is compared before it is written: an event that is handled twice leaves two
rows in the ledger, and one that is handled too late overwrites what came after it.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
    path TEXT PRIMARY KEY, blob TEXT, revision INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS ledger (
    number INTEGER PRIMARY KEY AUTOINCREMENT, handler TEXT NOT NULL, event_id TEXT NOT NULL,
    path TEXT NOT NULL, revision INTEGER NOT NULL, pid INTEGER NOT NULL, at REAL NOT NULL);
CREATE TABLE IF NOT EXISTS kills (pid INTEGER NOT NULL, at REAL NOT NULL);
"""
_NOTE = "INSERT INTO ledger (handler, event_id, path, revision, pid, at) VALUES (?, ?, ?, ?, ?, ?)"
_APPLY = "INSERT OR REPLACE INTO files (path, blob, revision) VALUES (?, ?, ?)"
_COLUMNS = "number, event_id, path, revision, pid, at"
#: Seconds that a write waits for the other processes' writes.
_BUSY_SECONDS = 30.0


class Execution(NamedTuple):
    """One effect of the handler: a row of the ledger, in the order in which they were written."""

    number: int
    event_id: str
    path: str
    revision: int
    pid: int
    #: By the monotonic clock, which the processes of one machine share.
    at: float


class Kill(NamedTuple):
    """A process that was killed with SIGKILL."""

    pid: int
    #: Just before the signal was sent, by the monotonic clock.
    at: float


class Ledger:
    """One process's connection to the database. Any of its threads may write."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._lock = threading.Lock()
        self._read = 0

    @classmethod
    @contextmanager
    def open(cls, file: Path) -> Iterator[Ledger]:
        """Open ``file``, made if need be."""
        db = sqlite3.connect(
            file, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        with closing(db):
            db.execute("PRAGMA journal_mode = WAL")
            # Survives the death of every process, though not a power cut: none is cut here.
            db.execute("PRAGMA synchronous = NORMAL")
            db.executescript(_SCHEMA)
            yield cls(db)

    def apply(
        self, handler: str, event_id: str, path: str, blob: str | None, revision: int
    ) -> None:
        """Do what one event asks for, and note it: one transaction. Raises sqlite3.Error."""
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                note = (handler, event_id, path, revision, os.getpid(), time.monotonic())
                self._db.execute(_NOTE, note)
                self._db.execute(_APPLY, (path, blob, revision))
                self._db.execute("COMMIT")
            except BaseException:
                self._db.execute("ROLLBACK")
                raise

    def note_kill(self, kill: Kill) -> None:
        """Note that a process was killed: a second effect must have one to explain it."""
        with self._lock:
            self._db.execute("INSERT INTO kills VALUES (?, ?)", kill)

    def news(self) -> list[Execution]:
        """Return the rows that came since the last call."""
        with self._lock:
            query = f"SELECT {_COLUMNS} FROM ledger WHERE number > ? ORDER BY number"  # noqa: S608 - a constant
            rows = [Execution(*row) for row in self._db.execute(query, (self._read,))]
        if rows:
            self._read = rows[-1].number
        return rows

    def executions(self, path: str) -> Sequence[Execution]:
        """Return every row of ``path``."""
        with self._lock:
            query = f"SELECT {_COLUMNS} FROM ledger WHERE path = ? ORDER BY number"  # noqa: S608 - a constant
            return [Execution(*row) for row in self._db.execute(query, (path,))]

    def kills(self) -> list[Kill]:
        """Return all kills."""
        with self._lock:
            return [Kill(*row) for row in self._db.execute("SELECT pid, at FROM kills")]

    def tree(self) -> dict[str, str]:
        """Return path and blob of every file that is there."""
        with self._lock:
            query = "SELECT path, blob FROM files WHERE blob IS NOT NULL"
            return dict(self._db.execute(query).fetchall())
