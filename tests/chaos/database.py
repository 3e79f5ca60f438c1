"""The database of the transactional tier: accounts, and a row for each effect, in their order."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Protocol

from chaos.history import Entry


class Records(Protocol):
    """The database of a transactional tier, to whoever judges."""

    @property
    def where(self) -> str:
        """Where it is, as the handlers are told."""
        ...

    def effects(self) -> list[Entry]:
        """Return all effects, in the order of their transactions."""
        ...

    def balances(self) -> dict[str, int]:
        """Return what every account has."""
        ...


_SCHEMA = """
CREATE TABLE IF NOT EXISTS accounts (name TEXT PRIMARY KEY, balance INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS effects (
    number INTEGER PRIMARY KEY AUTOINCREMENT, at REAL, pid INTEGER, id TEXT, key TEXT,
    sequence INTEGER, handler TEXT, run INTEGER, attempt INTEGER, shard INTEGER, fence INTEGER,
    supervisor TEXT, life INTEGER, detail TEXT);
"""
_EFFECTS = (
    "SELECT at, pid, id, key, sequence, handler, run, attempt, shard, fence, supervisor, life,"
    " detail FROM effects ORDER BY number"
)
#: Seconds that a write waits for those of other processes.
_BUSY = 60.0


def connect(file: Path) -> sqlite3.Connection:
    """Open it, made if need be."""
    db = sqlite3.connect(file, timeout=_BUSY, check_same_thread=False)
    db.execute("PRAGMA journal_mode = WAL")
    # Outlives the death of every process; no power is cut here.
    db.execute("PRAGMA synchronous = NORMAL")
    db.executescript(_SCHEMA)
    return db


class Database:
    """What a trial sees of it."""

    def __init__(self, file: Path) -> None:
        #: Where it is, as the handlers are told.
        self.where = str(file)
        self._file = file

    def effects(self) -> list[Entry]:
        """Return all effects, in the order of their transactions."""
        with closing(connect(self._file)) as db:
            db.row_factory = sqlite3.Row
            return [Entry(what="effect", **dict(row)) for row in db.execute(_EFFECTS)]

    def balances(self) -> dict[str, int]:
        """Return what every account has."""
        with closing(connect(self._file)) as db:
            return dict(db.execute("SELECT name, balance FROM accounts").fetchall())
