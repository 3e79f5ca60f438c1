"""One connection's view of the embedded broker: publish, fetch and settle.

Each method is one transaction, or reads only. Publishing persistent messages is durable when it
returns; fetching and settling are not synced to the disk one by one, since what a power cut forgets
of them is only delivered once more.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

from amqp import exceptions

from worker.transport.embedded import store
from worker.transport.embedded.catalog import Catalog
from worker.transport.embedded.dead_letters import (
    REJECTED,
    DeadLetters,
    address,
    make_letter,
)
from worker.transport.embedded.declarations import Declarations
from worker.transport.embedded.encoding import Unencodable, check_short_string
from worker.transport.embedded.presence import Presence

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Mapping, Sequence

    import amqp

    from worker.transport.embedded.catalog import Queue
    from worker.transport.embedded.database import Database
    from worker.transport.embedded.store import Leased, Letter, Place

#: Messages that one transaction expires, so that it never holds the lock for long.
_EXPIRED_AT_ONCE = 500

_READY = """
    SELECT c.id, d.ready, (SELECT count(*) FROM broker_consumers o
        WHERE o.queue = c.queue AND o.state = 1)
    FROM broker_consumers c JOIN broker_depths d ON d.queue = c.queue
    WHERE c.connection = ? AND c.state = 1 AND d.ready > 0 AND (c.single_active = 0
        OR c.id = (SELECT min(o.id) FROM broker_consumers o WHERE o.queue = c.queue))"""


class Sealed(NamedTuple):
    """A message that was checked and encoded, before it is routed."""

    mandatory: bool
    properties: Mapping[str, Any]
    letter: Letter


class Wanted(NamedTuple):
    """What a consumer can take now."""

    consumer: int
    queue: int
    limit: int
    no_ack: bool


class Depth(NamedTuple):
    """How full a queue is."""

    ready: int
    consumers: int


class Broker:
    """What a connection does, below AMQP's channels and tags. One thread at a time."""

    def __init__(self, database: Database, *, lease: float, keeps_transient: bool) -> None:
        self.database = database
        self.catalog = Catalog(database)
        self.declarations = Declarations(database, self.catalog)
        self.presence = Presence(database, lease=lease, keeps_transient=keeps_transient)
        self._dead_letters = DeadLetters(self.catalog)

    def publish(self, batch: Iterable[tuple[amqp.Message, str, str, bool]]) -> list[int]:
        """Store a batch in one transaction, each message in every queue that it is routed to.

        ``batch`` has (message, exchange, routing key, mandatory). Returns the places in the
        batch of the mandatory messages that no queue takes; the others are stored. Raises, and
        stores nothing at all: Unencodable, amqp NotFound for a missing exchange,
        PreconditionFailed for a bad expiration, MessageNacked where a full queue refuses.
        """
        sealed = [_seal(index, *entry) for index, entry in enumerate(batch)]
        # Transient messages are promised to nobody, so they need not be waited for.
        durable = any(s.letter.persistent for s in sealed)
        # Routed before the lock is taken, for others' sake, and again if that was too early.
        self.catalog.refresh()
        letters, unroutable = self._address(sealed, None)
        if letters:
            with self.database.transaction(durable=durable) as db:
                if self.catalog.refresh(db):
                    letters, unroutable = self._address(sealed, db)
                self._dead_letters.put(db, letters, refuse=True)
        else:
            self.database.check()  # that nobody wants them is true of a file that is still there
        return unroutable

    def ready(self) -> list[tuple[int, int, int]]:
        """Return the consumers that there are messages for: (consumer, ready, its competitors).

        Competitors include itself. A consumer that waits for the single active one is left out.
        """
        return self.database.rows(_READY, (self.presence.id,))

    def fetch(self, wanted: Iterable[Wanted]) -> list[list[Leased]]:
        """Lease to each consumer what it can take; return the messages of each, in order."""
        with self.database.transaction() as db:
            self.presence.verify(db)
            return [
                store.take(db, w.queue, w.limit)
                if w.no_ack
                else store.lease(db, w.queue, w.consumer, w.limit)
                for w in wanted
            ]

    def get(self, queue: Queue, getter: int | None, *, no_ack: bool) -> tuple[int, Leased] | None:
        """Take one message, on behalf of the row ``getter`` (made if None); None if there is none.

        Returns the row's id and the message.
        """
        if not self.depth(queue).ready:
            return None
        with self.database.transaction() as db:
            new = getter is None
            if getter is None:
                getter = self.presence.add_getter(db, queue)
            else:
                self.presence.verify(db)
            found = store.take(db, queue.id, 1) if no_ack else store.lease(db, queue.id, getter, 1)
            if new and (not found or no_ack):
                db.execute("DELETE FROM broker_consumers WHERE id = ?", (getter,))
        return (getter, found[0]) if found else None

    def acknowledge(self, places: Sequence[Place]) -> int:
        """Remove what is still leased so; return how many were. The rest is others' by now."""
        with self.database.transaction() as db:
            return store.acknowledge(db, places)

    def requeue(self, places: Sequence[Place]) -> int:
        """Give back what is still leased so, to its old places; return how many were."""
        with self.database.transaction() as db:
            return store.give_back(db, places)

    def reject(self, queue: Queue, places: Sequence[Place]) -> int:
        """Dead-letter what is still leased so; return how many were."""
        with self.database.transaction() as db:
            self.catalog.refresh(db)
            removed = store.remove(db, queue.id, places)
            self._dead_letters.bury(db, queue, removed, REJECTED)
            return len(removed)

    def next_expiry(self) -> int | None:
        """Return when the next message expires, in ms since 1970, if one does."""
        rows = self.database.rows(store.NEXT_EXPIRY)
        return rows[0][0] if rows else None

    def expire(self) -> None:
        """Dead-letter what has expired; leaves some for the next time if it is very much."""
        with self.database.transaction() as db:
            self.catalog.refresh(db)
            self._dead_letters.expire(db, _EXPIRED_AT_ONCE)

    def purge(self, queue: Queue) -> int:
        """Remove what is ready in a queue; return how many."""
        with self.database.transaction(durable=True) as db:
            return store.purge(db, queue.id)

    def depth(self, queue: Queue) -> Depth:
        """Return how many messages of a queue are ready, and its consumers."""
        self.expire_due()
        rows = self.database.rows(
            """SELECT ready, (SELECT count(*) FROM broker_consumers WHERE queue = ?1 AND state = 1)
                FROM broker_depths WHERE queue = ?1""",
            (queue.id,),
        )
        return Depth(*rows[0]) if rows else Depth(0, 0)

    def expire_due(self) -> None:
        """Dead-letter what has expired, if anything has."""
        expiry = self.next_expiry()
        if expiry is not None and expiry <= time.time() * 1000:
            self.expire()

    def leave(self) -> None:
        """Give everything back and go."""
        self.presence.leave()

    def _address(
        self, sealed: Sequence[Sealed], db: sqlite3.Connection | None
    ) -> tuple[dict[Queue, list[Letter]], list[int]]:
        """Return the letters for each queue, and the places of the unroutable mandatory ones."""
        now = int(time.time() * 1000)
        letters: dict[Queue, list[Letter]] = {}
        unroutable = []
        route = self.catalog.route
        for index, (mandatory, properties, letter) in enumerate(sealed):
            queues = route(letter.exchange, letter.routing_key, properties, db)
            if not queues and mandatory:
                unroutable.append(index)
            for queue in queues:
                addressed = address(letter, queue, properties, now)
                if queue in letters:
                    letters[queue].append(addressed)
                else:
                    letters[queue] = [addressed]
        return letters, unroutable


def _seal(
    index: int,
    message: amqp.Message,
    exchange: str,
    routing_key: str,
    mandatory: bool = False,  # noqa: FBT001, FBT002 - a batch's entry
) -> Sealed:
    """Check and encode one message."""
    properties: dict[str, Any] = message.properties
    body = message.body
    if isinstance(body, str):  # as py-amqp sends text
        encoding = properties.setdefault("content_encoding", "utf-8")
        body = body.encode(encoding)
    elif type(body) is not bytes:
        body = b"" if body is None else bytes(memoryview(body))
    try:
        check_short_string(routing_key, "a routing key")
        letter = make_letter(properties, body, exchange, routing_key)
        return Sealed(mandatory, properties, letter)
    except Unencodable as error:
        error.index = index
        raise


def unknown_tag(tag: int, method: tuple[int, int]) -> exceptions.PreconditionFailed:
    """Return the error for settling what was not delivered, or is settled already."""
    return exceptions.PreconditionFailed(
        f"PRECONDITION_FAILED - unknown delivery tag {tag}", method
    )
