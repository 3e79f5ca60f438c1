"""The rows of messages: putting in, leasing, giving back and removing them.

Every function works inside of the caller's transaction and keeps ``broker_depths`` true. It decides
nothing: who may have which message, and what becomes of it, is for the callers.
"""

# ruff: noqa: S608 - the statements are put together from constants of this file

from __future__ import annotations

import time
from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Mapping, Sequence

    from worker.transport.embedded.catalog import Queue


class Letter(NamedTuple):
    """A message on its way into one queue. ``expires`` is in ms since 1970."""

    rank: int
    expires: int | None
    persistent: bool
    exchange: str
    routing_key: str
    properties: bytes
    body: bytes


class Place(NamedTuple):
    """Where a leased message is, and whose it is: what a settlement must still find so."""

    queue: int
    rank: int
    number: int
    owner: int


#: A message as it is delivered: rank, number, redelivered, exchange, routing key, properties, body.
#: A bare row, for there is one for every delivery.
Leased: TypeAlias = tuple[int, int, int, str, str, bytes, bytes]


class Removed(NamedTuple):
    """A message that was taken out of its queue without anybody's having processed it."""

    persistent: int
    exchange: str
    routing_key: str
    properties: bytes
    body: bytes


_READY = """ WHERE queue = ?1 AND owner IS NULL AND (expires IS NULL OR expires > ?2)"""
#: The same, up to a number of one rank. (A comparison of whole (rank, number) pairs would read
#: the queue to its end.)
_READY_UP_TO = _READY + " AND rank = ?3 AND number <= ?4"
_AT_PLACE = " WHERE queue = ? AND rank = ? AND number = ? AND owner = ?"
_REMOVED = " RETURNING persistent, exchange, routing_key, properties, body"


def put(db: sqlite3.Connection, queue: Queue, letters: Sequence[Letter]) -> int:
    """Append ``letters`` to ``queue``; return how many messages are then ready in it."""
    count = len(letters)
    transient = not all(letter.persistent for letter in letters)
    ((last, ready),) = db.execute(
        """UPDATE broker_depths SET last = last + ?1, ready = ready + ?1, transient = transient | ?2
            WHERE queue = ?3 RETURNING last, ready""",
        (count, transient, queue.id),
    ).fetchall()
    id_, first = queue.id, last - count + 1
    db.executemany(
        """INSERT INTO broker_messages (queue, number, rank, expires, persistent, exchange,
            routing_key, properties, body) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)""",
        [(id_, number, *letter) for number, letter in enumerate(letters, first)],
    )
    return int(ready)


def lease(db: sqlite3.Connection, queue: int, owner: int, limit: int) -> list[Leased]:
    """Lease the next messages of a queue, at most ``limit``, to ``owner``; return them in order."""
    now = _now()
    rows = _next(db, queue, now, limit)
    for rank, number in _ends(rows):
        db.execute(
            "UPDATE broker_messages SET owner = ?5" + _READY_UP_TO,
            (queue, now, rank, number, owner),
        )
    _count(db, queue, ready=-len(rows), leased=len(rows))
    return rows


def take(db: sqlite3.Connection, queue: int, limit: int) -> list[Leased]:
    """Remove the next messages of a queue, at most ``limit``, and return them in order."""
    now = _now()
    rows = _next(db, queue, now, limit)
    for rank, number in _ends(rows):
        db.execute("DELETE FROM broker_messages" + _READY_UP_TO, (queue, now, rank, number))
    _count(db, queue, ready=-len(rows))
    return rows


def acknowledge(db: sqlite3.Connection, places: Sequence[Place]) -> int:
    """Remove the leased messages that are still at their places; return how many were."""
    total = 0
    for queue, group in _by_queue(places):
        count = db.executemany("DELETE FROM broker_messages" + _AT_PLACE, group).rowcount
        _count(db, queue, leased=-count)
        total += count
    return total


def give_back(db: sqlite3.Connection, places: Sequence[Place]) -> int:
    """Make the leased messages ready again, at their old places, as redelivered."""
    total = 0
    for queue, group in _by_queue(places):
        count = db.executemany(
            "UPDATE broker_messages SET owner = NULL, redelivered = 1" + _AT_PLACE, group
        ).rowcount
        _count(db, queue, ready=count, leased=-count)
        total += count
    return total


def remove(db: sqlite3.Connection, queue: int, places: Iterable[Place]) -> list[Removed]:
    """Take the leased messages that are still at their places out of a queue; return them."""
    removed = [
        Removed(*row)
        for place in places
        for row in db.execute(
            "DELETE FROM broker_messages" + _AT_PLACE + _REMOVED, place
        ).fetchall()
    ]
    _count(db, queue, leased=-len(removed))
    return removed


def remove_head(db: sqlite3.Connection, queue: int, count: int) -> list[Removed]:
    """Take the ``count`` messages that would be delivered next out of a queue; return them."""
    head = db.execute(
        """SELECT queue, rank, number FROM broker_messages WHERE queue = ? AND owner IS NULL
            ORDER BY rank, number LIMIT ?""",
        (queue, count),
    ).fetchall()
    return _remove_ready(db, queue, head)


def remove_expired(db: sqlite3.Connection, limit: int) -> dict[int, list[Removed]]:
    """Take the messages that have expired, at most ``limit``, out of their queues; return them."""
    expired: defaultdict[int, list[tuple[int, int, int]]] = defaultdict(list)
    for queue, rank, number in db.execute(
        """SELECT queue, rank, number FROM broker_messages
            WHERE expires IS NOT NULL AND owner IS NULL AND expires <= ?
            ORDER BY expires, queue, rank, number LIMIT ?""",
        (_now(), limit),
    ).fetchall():
        expired[queue].append((queue, rank, number))
    return {queue: _remove_ready(db, queue, places) for queue, places in expired.items()}


#: When the next message of the whole broker expires, in ms since 1970.
NEXT_EXPIRY = """SELECT expires FROM broker_messages WHERE expires IS NOT NULL AND owner IS NULL
    ORDER BY expires LIMIT 1"""


def release(db: sqlite3.Connection, queue: int, owner: int) -> int:
    """Give back all that ``owner`` holds of a queue, wherever it stands; return how much."""
    row = db.execute("SELECT leased FROM broker_depths WHERE queue = ?", (queue,)).fetchone()
    # Leased messages stand near the head. The limit ends the search at the last of them, so a
    # long queue is not read to its end.
    places = [
        Place(queue, rank, number, owner)
        for rank, number, holder in db.execute(
            """SELECT rank, number, owner FROM broker_messages WHERE queue = ?
                AND owner IS NOT NULL ORDER BY rank, number LIMIT ?""",
            (queue, row[0] if row else 0),
        ).fetchall()
        if holder == owner
    ]
    return give_back(db, places)


def purge(db: sqlite3.Connection, queue: int) -> int:
    """Remove all ready messages of a queue; return how many."""
    count = db.execute(
        "DELETE FROM broker_messages WHERE queue = ? AND owner IS NULL", (queue,)
    ).rowcount
    _count(db, queue, ready=-count)
    return count


def remove_transient(db: sqlite3.Connection) -> None:
    """Remove the messages that are not persistent. Nobody may hold a lease."""
    for (queue,) in db.execute("SELECT queue FROM broker_depths WHERE transient").fetchall():
        count = db.execute(
            "DELETE FROM broker_messages WHERE queue = ? AND NOT persistent", (queue,)
        ).rowcount
        db.execute(
            "UPDATE broker_depths SET ready = ready - ?, transient = 0 WHERE queue = ?",
            (count, queue),
        )


def _next(db: sqlite3.Connection, queue: int, now: int, limit: int) -> list[Leased]:
    return db.execute(
        """SELECT rank, number, redelivered, exchange, routing_key, properties, body
            FROM broker_messages"""
        + _READY
        + " ORDER BY rank, number LIMIT ?3",
        (queue, now, limit),
    ).fetchall()


def _ends(rows: Sequence[Leased]) -> Iterable[tuple[int, int]]:
    """Return the last number of each rank in ``rows``, which are in order.

    What was read is, in each rank, all that is ready up to there.
    """
    if rows and rows[0][0] == rows[-1][0]:
        return [(rows[-1][0], rows[-1][1])]
    return {row[0]: row[1] for row in rows}.items()


def _remove_ready(
    db: sqlite3.Connection, queue: int, places: Iterable[tuple[int, int, int]]
) -> list[Removed]:
    sql = "DELETE FROM broker_messages WHERE queue = ? AND rank = ? AND number = ?" + _REMOVED
    removed = [Removed(*row) for place in places for row in db.execute(sql, place).fetchall()]
    _count(db, queue, ready=-len(removed))
    return removed


def _count(db: sqlite3.Connection, queue: int, *, ready: int = 0, leased: int = 0) -> None:
    if ready or leased:
        db.execute(
            "UPDATE broker_depths SET ready = ready + ?, leased = leased + ? WHERE queue = ?",
            (ready, leased, queue),
        )


def _by_queue(places: Sequence[Place]) -> Iterable[tuple[int, Sequence[Place]]]:
    """Group places by queue; nearly always there is one."""
    groups: Mapping[int, list[Place]] = defaultdict(list)
    for place in places:
        groups[place.queue].append(place)
    return groups.items()


def _now() -> int:
    return int(time.time() * 1000)
