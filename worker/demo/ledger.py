"""What the handler did: a table of files as they are now, and a ledger that only grows.

Every effect is one transaction that writes both. Nothing of them is unique but the path in the
table of files, and nothing is compared before it is written: an event that takes effect twice
leaves two rows in the ledger, and one that comes too late overwrites what came after it. The
handler may write the id of its event into the same transaction, by ``Context.once``.
"""

from __future__ import annotations

import sqlite3
import threading
from contextlib import contextmanager
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
CREATE TABLE IF NOT EXISTS repetitions (event_id TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS kills (pid INTEGER NOT NULL, at REAL NOT NULL);
"""
#: What a handler writes: a line of the ledger, and what the file is from now on.
NOTE = "INSERT INTO ledger (handler, event_id, path, revision, pid, at) VALUES (?, ?, ?, ?, ?, ?)"
APPLY = "INSERT OR REPLACE INTO files (path, blob, revision) VALUES (?, ?, ?)"
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
    """The database, for one process: each of its threads has a connection of its own."""

    def __init__(self, file: Path, *, once: bool) -> None:
        self._file = file
        #: Whether the handler writes the id of its event into the transaction of its effect.
        self.once = once
        self._own = threading.local()
        self._all: list[sqlite3.Connection] = []
        self._read = 0

    @classmethod
    @contextmanager
    def open(cls, file: Path, *, once: bool = False) -> Iterator[Ledger]:
        """Open ``file``, made if need be."""
        ledger = cls(file, once=once)
        try:
            ledger._db.executescript(_SCHEMA)
            yield ledger
        finally:
            for db in ledger._all:
                db.close()

    @property
    def _db(self) -> sqlite3.Connection:
        """The connection of this thread."""
        db: sqlite3.Connection | None = getattr(self._own, "db", None)
        if db is None:
            # The threads of a pool end before the ledger is closed, by another thread.
            db = sqlite3.connect(
                self._file, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._own.db = db
            self._all.append(db)
            db.execute("PRAGMA journal_mode = WAL")
            # Survives the death of every process, though not a power cut: none is cut here.
            db.execute("PRAGMA synchronous = NORMAL")
        return db

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Give this thread's connection, in a transaction that ends with the block.

        Raises sqlite3.Error.
        """
        db = self._db
        db.execute("BEGIN IMMEDIATE")
        with db:
            yield db

    def note_kill(self, kill: Kill) -> None:
        """Note that a process was killed: a second effect must have one to explain it."""
        self._db.execute("INSERT INTO kills VALUES (?, ?)", kill)

    def note_repetition(self, event_id: str) -> None:
        """Note that an event was run again, and had no second effect."""
        self._db.execute("INSERT INTO repetitions VALUES (?)", (event_id,))

    def news(self) -> list[Execution]:
        """Return the rows that came since the last call."""
        query = f"SELECT {_COLUMNS} FROM ledger WHERE number > ? ORDER BY number"  # noqa: S608 - a constant
        rows = [Execution(*row) for row in self._db.execute(query, (self._read,))]
        if rows:
            self._read = rows[-1].number
        return rows

    def executions(self, path: str) -> Sequence[Execution]:
        """Return every row of ``path``."""
        query = f"SELECT {_COLUMNS} FROM ledger WHERE path = ? ORDER BY number"  # noqa: S608 - a constant
        return [Execution(*row) for row in self._db.execute(query, (path,))]

    def kills(self) -> list[Kill]:
        """Return all kills."""
        return [Kill(*row) for row in self._db.execute("SELECT pid, at FROM kills")]

    def repetitions(self) -> int:
        """Return how often an event was run again and had no second effect."""
        return int(self._db.execute("SELECT count(*) FROM repetitions").fetchone()[0])

    def tree(self) -> dict[str, str]:
        """Return path and blob of every file that is there."""
        query = "SELECT path, blob FROM files WHERE blob IS NOT NULL"
        return dict(self._db.execute(query).fetchall())
