"""The tables of the embedded broker, and their version.

``PRAGMA user_version`` is the version of these tables. Other parts of qworker may keep tables of
their own in the same file (named ``dedup_*``, say): they are never looked at.

A message is one row of its queue, in the order in which the queue delivers: by rank (the
negative priority), then by number (a count of its own for each queue). Delivering writes the owner
into the row, settling removes it, and giving back clears the owner: so what is given back stands
at its old place. Rows of one queue lie side by side, which is what makes batches cheap. What many
readers ask for, how much is ready and how much is leased, is counted in ``broker_depths``
in the same transactions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from amqp import exceptions

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.transport.embedded.database import Database

VERSION = 1

_TABLES = (
    # ``topology`` rises with every declaration, so that what was routed before is routed anew.
    "CREATE TABLE broker_state (topology INTEGER NOT NULL)",
    "INSERT INTO broker_state VALUES (1)",
    """CREATE TABLE broker_exchanges (
        name TEXT PRIMARY KEY, type TEXT NOT NULL, durable INTEGER NOT NULL,
        auto_delete INTEGER NOT NULL, arguments BLOB NOT NULL) WITHOUT ROWID""",
    # ``connection`` is that of an exclusive queue. ``used_at`` (ms since 1970) is kept up to
    # date where ``expires`` (ms) is set.
    """CREATE TABLE broker_queues (
        id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, durable INTEGER NOT NULL,
        auto_delete INTEGER NOT NULL, connection INTEGER, arguments BLOB NOT NULL,
        expires INTEGER, used_at INTEGER)""",
    """CREATE TABLE broker_bindings (
        source TEXT NOT NULL, is_queue INTEGER NOT NULL, destination TEXT NOT NULL,
        routing_key TEXT NOT NULL, arguments BLOB NOT NULL,
        PRIMARY KEY (source, is_queue, destination, routing_key, arguments)) WITHOUT ROWID""",
    """CREATE INDEX broker_bindings_by_destination
        ON broker_bindings (is_queue, destination)""",
    # ``transient`` tells that some of its messages die with the last connection.
    """CREATE TABLE broker_depths (
        queue INTEGER PRIMARY KEY, last INTEGER NOT NULL DEFAULT 0,
        ready INTEGER NOT NULL DEFAULT 0, leased INTEGER NOT NULL DEFAULT 0,
        transient INTEGER NOT NULL DEFAULT 0)""",
    # ``owner`` is a row of broker_consumers. ``expires`` is in ms since 1970.
    """CREATE TABLE broker_messages (
        queue INTEGER NOT NULL, rank INTEGER NOT NULL, number INTEGER NOT NULL,
        owner INTEGER, redelivered INTEGER NOT NULL DEFAULT 0, expires INTEGER,
        persistent INTEGER NOT NULL, exchange TEXT NOT NULL, routing_key TEXT NOT NULL,
        properties BLOB NOT NULL, body BLOB NOT NULL,
        PRIMARY KEY (queue, rank, number)) WITHOUT ROWID""",
    """CREATE INDEX broker_messages_by_expiry ON broker_messages (expires)
        WHERE expires IS NOT NULL AND owner IS NULL""",
    # ``renewed`` and ``lease`` are seconds of the monotonic clock, which starts anew with
    # each boot; so ``boot`` belongs to them.
    """CREATE TABLE broker_connections (
        id INTEGER PRIMARY KEY AUTOINCREMENT, pid INTEGER NOT NULL, started TEXT NOT NULL,
        namespace TEXT NOT NULL, boot TEXT NOT NULL, renewed REAL NOT NULL, lease REAL NOT NULL)""",
    # ``state`` is one of presence.State.
    """CREATE TABLE broker_consumers (
        id INTEGER PRIMARY KEY AUTOINCREMENT, connection INTEGER NOT NULL, queue INTEGER NOT NULL,
        state INTEGER NOT NULL, exclusive INTEGER NOT NULL, single_active INTEGER NOT NULL)""",
    "CREATE INDEX broker_consumers_by_queue ON broker_consumers (queue)",
    "CREATE INDEX broker_consumers_by_connection ON broker_consumers (connection)",
)

#: Every AMQP broker has them from the start. The empty table of arguments is MessagePack's.
_EXCHANGES = (
    ("amq.direct", "direct"),
    ("amq.fanout", "fanout"),
    ("amq.headers", "headers"),
    ("amq.match", "headers"),
    ("amq.topic", "topic"),
)
_NO_ARGUMENTS = b"\x80"


def install(database: Database) -> None:
    """Make the tables where they are missing.

    Raises an irrecoverable amqp ConnectionError where the file is of a newer version or another
    program's.
    """
    if _installed(database.rows, database.name):
        return
    with database.transaction(durable=True) as db:
        # Another process may have been faster since the look above.
        if _installed(lambda sql: db.execute(sql).fetchall(), database.name):
            return
        for statement in _TABLES:
            db.execute(statement)
        db.executemany(
            "INSERT INTO broker_exchanges VALUES (?, ?, 1, 0, ?)",
            [(name, type_, _NO_ARGUMENTS) for name, type_ in _EXCHANGES],
        )
        db.execute(f"PRAGMA user_version={VERSION}")


def _installed(rows: Callable[[str], list[Any]], name: str) -> bool:
    ((version,),) = rows("PRAGMA user_version")
    if version > VERSION:
        raise exceptions.NotAllowed(
            f"{name}: made by a newer qworker (its tables have version {version}, this one knows"
            f" {VERSION}), or by another program; upgrade qworker, or name another file"
        )
    if version and not rows("SELECT 1 FROM sqlite_master WHERE name = 'broker_messages'"):
        raise exceptions.NotAllowed(f"{name}: belongs to another program; name another file")
    return bool(version)
