"""The database of the transactional tier: accounts, and a row for each effect, in their order."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from chaos.history import Entry

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


def effects(file: Path) -> list[Entry]:
    """Return all effects, in the order of their transactions."""
    with closing(connect(file)) as db:
        db.row_factory = sqlite3.Row
        return [Entry(what="effect", **dict(row)) for row in db.execute(_EFFECTS)]


def balances(file: Path) -> dict[str, int]:
    """Return what every account has."""
    with closing(connect(file)) as db:
        return dict(db.execute("SELECT name, balance FROM accounts").fetchall())
