"""Who is connected, who consumes what, and who of them is alive.

A connection is a row with a lease, renewed by a running consumer at a third of its length. It is
over when its owner closes it, when its process is known to be dead, or when the lease expired
without renewal (the process hangs, was paused, or is in another container). Whoever notices
clears up after it, in one transaction: what it held goes back to its place, its exclusive queues
go. A connection that was cleared away finds no row of its own any more: it holds nothing, and
learns that with its next renewal or fetch.

A consumer row lives while it consumes or still holds messages. That makes the single active
consumer of a queue simply its oldest row: there is no moment in which a successor could start ahead
of what its predecessor still holds.

Lease times are of the monotonic clock, which the processes of one machine share, and which no
change of the time of day moves.
"""

from __future__ import annotations

import time
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from amqp import exceptions

from worker.transport.embedded import declarations, store
from worker.transport.embedded.process import Process

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Collection

    from worker.transport.embedded.catalog import Queue
    from worker.transport.embedded.database import Database

_BASIC_CONSUME = (60, 20)


class LeaseLost(exceptions.RecoverableConnectionError):  # type: ignore[misc] # amqp is untyped
    """The connection was taken for dead and cleared up after."""

    def __init__(self) -> None:
        super().__init__(
            "the lease of this connection expired (its process was paused or busy for too long),"
            " and what it held was given to others; reconnect"
        )


class State(IntEnum):
    """Why a consumer row is there."""

    #: It is given messages.
    CONSUMING = 1
    #: It was cancelled and still holds messages.
    CANCELLED = 2
    #: It stands for the messages that a channel took with basic_get.
    GETTING = 3


class Connected(NamedTuple):
    """A row of broker_connections, and whether anything hangs on it."""

    id: int
    process: Process
    renewed: float
    lease: float
    holds: bool

    def is_over(self, here: Process, now: float) -> bool:
        """Tell whether its owner is dead, or has lost it.

        One that holds nothing, of a process that can be seen to live, keeps nobody waiting: a
        program that publishes once an hour need not renew anything in between.
        """
        # Renewed in the future: by the monotonic clock of an earlier boot.
        expired = not now - self.lease <= self.renewed <= now
        if expired and (self.holds or not self.process.is_visible(here)):
            return True
        return self.process.is_known_dead(here)


class Presence:
    """One connection's row, its consumers' rows, and the clearing up after others."""

    def __init__(self, database: Database, *, lease: float, keeps_transient: bool) -> None:
        """Connect. ``lease`` is in seconds.

        Unless ``keeps_transient``, what is not durable is removed if nobody else is connected.
        """
        self._database = database
        self._here = Process.current()
        self.lease = lease
        with database.transaction() as db:
            _clear_up(db, [row.id for row in self._over(db)])
            if not keeps_transient and not _connected(db):
                declarations.remove_transient(db)
                store.remove_transient(db)
            here = self._here
            ((self.id,),) = db.execute(
                """INSERT INTO broker_connections
                    (pid, started, namespace, boot, renewed, lease)
                    VALUES (?, ?, ?, ?, ?, ?) RETURNING id""",
                (here.pid, here.started, here.namespace, here.boot, time.monotonic(), lease),
            ).fetchall()

    def renew(self) -> None:
        """Hold the lease for its whole length from now.

        Raises LeaseLost where the connection was cleared away.
        """
        with self._database.transaction() as db:
            self._renew_in(db)

    def verify(self, db: sqlite3.Connection) -> None:
        """Raise LeaseLost where the connection was cleared away."""
        found = db.execute("SELECT 1 FROM broker_connections WHERE id = ?", (self.id,))
        if found.fetchone() is None:
            raise LeaseLost

    def leave(self) -> None:
        """Give everything back and go."""
        with self._database.transaction() as db:
            _clear_up(db, [self.id])

    def clear_up_after_others(self) -> None:
        """Clear up after connections that are over. Writes nothing where there are none.

        Raises LeaseLost where another one cleared up after this one.
        """
        rows = [_row(row) for row in self._database.rows(_CONNECTIONS)]
        now = time.monotonic()
        if all(row.id != self.id for row in rows):
            raise LeaseLost
        if any(row.id != self.id and row.is_over(self._here, now) for row in rows):
            with self._database.transaction() as db:
                self.clear_up_in(db)

    def clear_up_in(self, db: sqlite3.Connection) -> None:
        """Do so within a transaction."""
        _clear_up(db, [row.id for row in self._over(db) if row.id != self.id])

    def add_consumer(self, queue: Queue, *, exclusive: bool) -> int:
        """Add a consumer of ``queue`` and return its id.

        Raises amqp AccessRefused where another one is, or this one wants to be, the only one,
        and NotFound where the queue is gone.
        """
        with self._database.transaction() as db:
            self._renew_in(db)
            if self._is_taken(db, queue, exclusive=exclusive):
                self.clear_up_in(db)
                if self._is_taken(db, queue, exclusive=exclusive):
                    raise exceptions.AccessRefused(
                        f"ACCESS_REFUSED - queue {queue.name!r} in exclusive use", _BASIC_CONSUME
                    )
            return self._add(db, queue, State.CONSUMING, exclusive=exclusive)

    def add_getter(self, db: sqlite3.Connection, queue: Queue) -> int:
        """Add a row for messages that are taken with basic_get, and return its id.

        Raises amqp ResourceLocked where a single active consumer has the queue.
        """
        self._renew_in(db)
        if queue.single_active and _has_rows(db, queue):
            self.clear_up_in(db)
            if _has_rows(db, queue):
                raise exceptions.ResourceLocked(
                    f"RESOURCE_LOCKED - queue {queue.name!r} has a single active consumer", (60, 70)
                )
        return self._add(db, queue, State.GETTING, exclusive=False)

    def cancel_consumer(self, id_: int, queue: Queue, *, holds: bool) -> None:
        """End a consumer, or let it only hold what it has. An auto-delete queue may go with it."""
        with self._database.transaction() as db:
            if holds:
                db.execute(
                    "UPDATE broker_consumers SET state = ?, exclusive = 0 WHERE id = ?",
                    (State.CANCELLED, id_),
                )
                _after_consumer(db, queue.id, queue.name, auto_delete=queue.auto_delete)
            else:
                _remove_consumers(db, [id_])

    def remove_consumers(self, ids: Collection[int]) -> None:
        """End consumers and give back what they hold, in one transaction."""
        with self._database.transaction() as db:
            _remove_consumers(db, ids)

    def own_consumers(self) -> set[int]:
        """Return the ids of this connection's consumers; those of a deleted queue are gone."""
        rows = self._database.rows(
            "SELECT id FROM broker_consumers WHERE connection = ?", (self.id,)
        )
        return {id_ for (id_,) in rows}

    def _renew_in(self, db: sqlite3.Connection) -> None:
        renewed = db.execute(
            "UPDATE broker_connections SET renewed = ? WHERE id = ?", (time.monotonic(), self.id)
        )
        if not renewed.rowcount:
            raise LeaseLost

    def _add(self, db: sqlite3.Connection, queue: Queue, state: State, *, exclusive: bool) -> int:
        # It may have been deleted since it was looked up, or just now as a dead consumer's.
        there = db.execute("SELECT 1 FROM broker_queues WHERE id = ?", (queue.id,))
        if there.fetchone() is None:
            raise declarations.no_queue(queue.name, _BASIC_CONSUME)
        ((id_,),) = db.execute(
            """INSERT INTO broker_consumers (connection, queue, state, exclusive, single_active)
                VALUES (?, ?, ?, ?, ?) RETURNING id""",
            (self.id, queue.id, state, exclusive, queue.single_active),
        ).fetchall()
        declarations.touch(db, queue.id)
        return int(id_)

    def _is_taken(self, db: sqlite3.Connection, queue: Queue, *, exclusive: bool) -> bool:
        others = db.execute(
            "SELECT exclusive FROM broker_consumers WHERE queue = ? AND state = ?",
            (queue.id, State.CONSUMING),
        ).fetchall()
        return any(exclusive or others_exclusive for (others_exclusive,) in others)

    def _over(self, db: sqlite3.Connection) -> list[Connected]:
        now = time.monotonic()
        return [row for row in _connected(db) if row.is_over(self._here, now)]


_CONNECTIONS = """
    SELECT id, pid, started, namespace, boot, renewed, lease,
        EXISTS (SELECT 1 FROM broker_consumers c WHERE c.connection = n.id)
        OR EXISTS (SELECT 1 FROM broker_queues q WHERE q.connection = n.id)
    FROM broker_connections n"""


def _row(row: tuple[int, int, str, str, str, float, float, int]) -> Connected:
    id_, pid, started, namespace, boot, renewed, lease, holds = row
    return Connected(id_, Process(pid, started, namespace, boot), renewed, lease, bool(holds))


def _connected(db: sqlite3.Connection) -> list[Connected]:
    return [_row(row) for row in db.execute(_CONNECTIONS).fetchall()]


def _has_rows(db: sqlite3.Connection, queue: Queue) -> bool:
    found = db.execute("SELECT 1 FROM broker_consumers WHERE queue = ? LIMIT 1", (queue.id,))
    return found.fetchone() is not None


def _clear_up(db: sqlite3.Connection, connections: Collection[int]) -> None:
    """Remove connections and all that hangs on them."""
    for connection in connections:
        consumers = db.execute(
            "SELECT id FROM broker_consumers WHERE connection = ?", (connection,)
        ).fetchall()
        _remove_consumers(db, [id_ for (id_,) in consumers])
        exclusive = db.execute(
            "SELECT id, name FROM broker_queues WHERE connection = ?", (connection,)
        ).fetchall()
        for id_, name in exclusive:
            declarations.remove_queue(db, id_, name)
        db.execute("DELETE FROM broker_connections WHERE id = ?", (connection,))


def _remove_consumers(db: sqlite3.Connection, ids: Collection[int]) -> None:
    for id_ in ids:
        row = db.execute(
            """SELECT q.id, q.name, q.auto_delete, c.state FROM broker_consumers c
                JOIN broker_queues q ON q.id = c.queue WHERE c.id = ?""",
            (id_,),
        ).fetchone()
        if row is None:
            continue  # its queue was deleted
        queue, name, auto_delete, state = row
        store.release(db, queue, id_)
        db.execute("DELETE FROM broker_consumers WHERE id = ?", (id_,))
        consumed = state == State.CONSUMING
        _after_consumer(db, queue, name, auto_delete=bool(auto_delete) and consumed)


def _after_consumer(db: sqlite3.Connection, queue: int, name: str, *, auto_delete: bool) -> None:
    """Note that a queue has a consumer less."""
    if auto_delete and not declarations.has_consumers(db, queue):
        declarations.remove_queue(db, queue, name)
    else:
        declarations.touch(db, queue)
