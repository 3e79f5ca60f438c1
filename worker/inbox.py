"""The transactional tier on SQLite: the effect and the memory of its id are one transaction.

The dedup store alone cannot know whether a process that died between a handler's effect and its
record had the effect. A handler whose effect is a transaction of a database can: it writes the id
into the same transaction, and whoever runs the message again finds it there. (The *idempotent
receiver* of Hohpe and Woolf, *Enterprise Integration Patterns*, with its memory inside the effect.)
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from worker.errors import AlreadyDone

if TYPE_CHECKING:
    import sqlite3

#: Why a message is rejected whose handler asks again.
TWICE = (
    "context.once was called a second time; call it once for a message, and put all of the effect"
    " into that one transaction"
)
_CREATE = """CREATE TABLE IF NOT EXISTS qworker_inbox (
    handler TEXT NOT NULL, message_id TEXT NOT NULL, at REAL NOT NULL,
    PRIMARY KEY (handler, message_id)) WITHOUT ROWID"""
_INSERT = "INSERT OR IGNORE INTO qworker_inbox VALUES (?, ?, ?)"
_PURGE = "DELETE FROM qworker_inbox WHERE at < ?"


def place_of(connection: sqlite3.Connection) -> object:
    """Return what tells its database from others: the file; of one in memory, the connection."""
    for _, name, file in connection.execute("PRAGMA database_list"):
        if name == "main" and file:
            return file
    return connection


def record(connection: sqlite3.Connection, handler: str, message_id: str) -> None:
    """Write (handler, id) into the transaction that ``connection`` is in.

    Begins one where none is open, and makes the table where there is none. Raises AlreadyDone
    where the id is there already; sqlite3.Error as sqlite3 does.
    """
    if not connection.in_transaction:
        connection.execute("BEGIN IMMEDIATE")
    connection.execute(_CREATE)
    if connection.execute(_INSERT, (handler, message_id, time.time())).rowcount == 0:
        connection.rollback()
        raise AlreadyDone(f"{handler} has done {message_id}")


def check_committed(connection: sqlite3.Connection, handler: str) -> None:
    """Raise RuntimeError where ``connection`` is in a transaction, which is rolled back.

    A closed connection tells nothing.
    """
    try:
        is_open = connection.in_transaction
    except Exception:  # noqa: BLE001 - sqlite3's ProgrammingError: it is closed
        return
    if is_open:
        connection.rollback()
        raise RuntimeError(
            f"{handler} returned without a commit of the transaction of context.once: say 'with"
            " connection:', or connection.commit()"
        )


def purge(connection: sqlite3.Connection, older_than: float) -> int:
    """Forget ids recorded more than ``older_than`` seconds ago; return how many.

    Keep them as long as any message can come again: the retention of the dedup store, and as long
    as dead letters may be replayed.
    """
    with connection:
        connection.execute(_CREATE)
        return connection.execute(_PURGE, (time.time() - older_than,)).rowcount
