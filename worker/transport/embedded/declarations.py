"""Declaring, binding and deleting exchanges and queues, by the rules of AMQP and RabbitMQ.

Declaring again what is there is fine if it is the same, and costs no transaction; declaring it
otherwise is refused. Everything here is durable when it returns. Errors are amqp's channel errors
with RabbitMQ's codes; see RabbitMQ's documentation, "Queues" and "Exchanges".
"""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Any

from amqp import exceptions

from worker.transport.embedded.encoding import check_short_string, encode_table
from worker.transport.routing import CONSISTENT_HASH, EXCHANGE_TYPES, Destination, hash_weight

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Mapping

    from worker.transport.embedded.catalog import Catalog, Queue
    from worker.transport.embedded.database import Database

EXCHANGE_DECLARE, EXCHANGE_DELETE = (40, 10), (40, 20)
EXCHANGE_BIND, EXCHANGE_UNBIND = (40, 30), (40, 40)
QUEUE_DECLARE, QUEUE_BIND, QUEUE_PURGE = (50, 10), (50, 20), (50, 30)
QUEUE_DELETE, QUEUE_UNBIND = (50, 40), (50, 50)

_RESERVED = "amq."
_LARGEST_PRIORITY = 255
#: Queue arguments with the least and the largest number that they may be.
_NUMBERS = {
    "x-expires": (1, None),
    "x-max-length": (0, None),
    "x-max-priority": (0, _LARGEST_PRIORITY),
    "x-message-ttl": (0, None),
}
_TEXTS = ("x-dead-letter-exchange", "x-dead-letter-routing-key")
_OVERFLOWS = ("drop-head", "reject-publish")

_RAISE_TOPOLOGY = "UPDATE broker_state SET topology = topology + 1"


class Declarations:
    """Changes what is declared. One per connection, whose ``catalog`` it keeps fresh."""

    def __init__(self, database: Database, catalog: Catalog) -> None:
        self._database = database
        self._catalog = catalog

    def declare_exchange(  # noqa: PLR0913 - AMQP's arguments
        self,
        name: str,
        type_: str,
        *,
        passive: bool,
        durable: bool,
        auto_delete: bool,
        arguments: Mapping[str, Any] | None,
    ) -> None:
        """Declare an exchange, or check that it is there (``passive``)."""
        check_short_string(name, "the name of an exchange")
        self._catalog.refresh()
        current = self._catalog.exchange(name)
        if passive:
            if current is None:
                raise _no_exchange(name, EXCHANGE_DECLARE)
            return
        if type_ not in EXCHANGE_TYPES:  # the first that RabbitMQ looks at
            raise exceptions.InvalidCommand(
                f"COMMAND_INVALID - unknown exchange type {type_!r}", EXCHANGE_DECLARE
            )
        if current is None:
            if not name or name.startswith(_RESERVED):
                raise exceptions.AccessRefused(
                    f"ACCESS_REFUSED - exchange name {name!r} is reserved", EXCHANGE_DECLARE
                )
            encoded = encode_table(arguments)
            with self._database.transaction(durable=True) as db:
                added = db.execute(
                    "INSERT INTO broker_exchanges VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                    (name, type_, durable, auto_delete, encoded),
                )
                if added.rowcount:
                    db.execute(_RAISE_TOPOLOGY)
                self._catalog.refresh(db)
                current = self._catalog.exchange(name, db)
            assert current is not None  # noqa: S101 - it was stored, by us or by another
        _same(
            f"exchange {name!r}",
            EXCHANGE_DECLARE,
            {
                "type": (type_, current.type),
                "durable": (durable, current.durable),
                "auto_delete": (auto_delete, current.auto_delete),
                "arguments": (dict(arguments or {}), current.arguments),
            },
        )

    def delete_exchange(self, name: str, *, if_unused: bool) -> None:
        """Delete an exchange with its bindings; no error where there is none."""
        if not name or name.startswith(_RESERVED):
            raise exceptions.AccessRefused(
                f"ACCESS_REFUSED - exchange {name!r} cannot be deleted", EXCHANGE_DELETE
            )
        with self._database.transaction(durable=True) as db:
            if if_unused and _is_source(db, name):
                raise exceptions.PreconditionFailed(
                    f"PRECONDITION_FAILED - exchange {name!r} in use", EXCHANGE_DELETE
                )
            _remove_exchange(db, name)
            db.execute(_RAISE_TOPOLOGY)

    def bind(
        self,
        source: str,
        destination: Destination,
        key: str,
        arguments: Mapping[str, Any] | None,
    ) -> None:
        """Bind a queue or an exchange to the exchange ``source``; twice is once."""
        method = QUEUE_BIND if destination.is_queue else EXCHANGE_BIND
        check_short_string(key, "a routing key")
        row = (source, destination.is_queue, destination.name, key, encode_table(arguments))
        if self._database.rows(
            """SELECT 1 FROM broker_bindings WHERE source = ? AND is_queue = ?
                AND destination = ? AND routing_key = ? AND arguments = ?""",
            row,
        ):
            return
        with self._database.transaction(durable=True) as db:
            self._catalog.refresh(db)
            if not source or not destination.name:
                raise exceptions.AccessRefused(
                    "ACCESS_REFUSED - operation not permitted on the default exchange", method
                )
            exchange = self._catalog.exchange(source, db)
            if exchange is None:
                raise _no_exchange(source, method)
            if destination.is_queue:
                if self._catalog.queue(destination.name, db) is None:
                    raise no_queue(destination.name, method)
            elif self._catalog.exchange(destination.name, db) is None:
                raise _no_exchange(destination.name, method)
            if exchange.type == CONSISTENT_HASH:
                try:
                    hash_weight(key)
                except ValueError as error:
                    raise _failed(str(error), method) from None
            db.execute(
                "INSERT INTO broker_bindings VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING", row
            )
            db.execute(_RAISE_TOPOLOGY)

    def unbind(
        self,
        source: str,
        destination: Destination,
        key: str,
        arguments: Mapping[str, Any] | None,
    ) -> None:
        """Remove a binding; no error where there is none."""
        with self._database.transaction(durable=True) as db:
            removed = db.execute(
                """DELETE FROM broker_bindings WHERE source = ? AND is_queue = ?
                    AND destination = ? AND routing_key = ? AND arguments = ?""",
                (source, destination.is_queue, destination.name, key, encode_table(arguments)),
            )
            if removed.rowcount:
                _remove_unused_exchanges(db, [source])
                db.execute(_RAISE_TOPOLOGY)

    def declare_queue(  # noqa: PLR0913 - AMQP's arguments
        self,
        name: str,
        *,
        passive: bool,
        durable: bool,
        auto_delete: bool,
        connection: int | None,
        arguments: Mapping[str, Any] | None,
    ) -> Queue:
        """Declare a queue, or check that it is there (``passive``); an empty name makes one up.

        ``connection`` is given for an exclusive queue. Whether an existing one belongs to
        another connection is for the caller to check.
        """
        check_short_string(name, "the name of a queue")
        self._catalog.refresh()
        current = self._catalog.queue(name) if name else None
        if passive:
            if current is None:
                raise no_queue(name, QUEUE_DECLARE)
            return current
        arguments = dict(arguments or {})
        if current is None:
            if name.startswith(_RESERVED):
                raise exceptions.AccessRefused(
                    f"ACCESS_REFUSED - queue name {name!r} is reserved", QUEUE_DECLARE
                )
            _check_queue_arguments(arguments)
            name = name or f"amq.gen-{uuid.uuid4()}"
            row = (name, durable, auto_delete, connection, encode_table(arguments))
            current = self._add_queue(row, arguments.get("x-expires"))
        elif "x-expires" in current.arguments:
            with self._database.transaction() as db:
                touch(db, current.id)
        if current.exclusive and current.connection != connection:
            return current  # the caller refuses it
        _same(
            f"queue {name!r}",
            QUEUE_DECLARE,
            {
                "durable": (durable, current.durable),
                "auto_delete": (auto_delete, current.auto_delete),
                "exclusive": (connection is not None, current.exclusive),
                "arguments": (arguments, current.arguments),
            },
        )
        return current

    def delete_queue(self, queue: Queue, *, if_unused: bool, if_empty: bool) -> int:
        """Delete a queue with its bindings, consumers and messages; return how many were ready."""
        with self._database.transaction(durable=True) as db:
            depth = db.execute("SELECT ready FROM broker_depths WHERE queue = ?", (queue.id,))
            (ready,) = depth.fetchone() or (0,)
            if if_empty and ready:
                raise _failed(f"queue {queue.name!r} not empty", QUEUE_DELETE)
            if if_unused and has_consumers(db, queue.id):
                raise _failed(f"queue {queue.name!r} in use", QUEUE_DELETE)
            remove_queue(db, queue.id, queue.name)
        return int(ready)

    def expire_queues(self) -> None:
        """Delete the queues that nobody has used for as long as their ``x-expires`` says."""
        now = time.time() * 1000
        unused = """SELECT id, name FROM broker_queues WHERE expires IS NOT NULL
            AND used_at + expires <= ? AND NOT EXISTS (
                SELECT 1 FROM broker_consumers c WHERE c.queue = broker_queues.id)"""
        if self._database.rows(unused, (now,)):
            with self._database.transaction() as db:
                for id_, name in db.execute(unused, (now,)).fetchall():
                    remove_queue(db, id_, name)

    def _add_queue(self, row: tuple[Any, ...], expires: int | None) -> Queue:
        with self._database.transaction(durable=True) as db:
            added = db.execute(
                """INSERT INTO broker_queues
                    (name, durable, auto_delete, connection, arguments, expires, used_at)
                    VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING RETURNING id""",
                (*row, expires, time.time() * 1000),
            ).fetchall()
            for (id_,) in added:
                db.execute("INSERT INTO broker_depths (queue) VALUES (?)", (id_,))
                db.execute(_RAISE_TOPOLOGY)
            self._catalog.refresh(db)
            queue = self._catalog.queue(row[0], db)
        assert queue is not None  # noqa: S101 - it was stored, by us or by another
        return queue


def touch(db: sqlite3.Connection, queue: int) -> None:
    """Note that a queue is in use, for its ``x-expires``."""
    db.execute(
        "UPDATE broker_queues SET used_at = ? WHERE id = ? AND expires IS NOT NULL",
        (time.time() * 1000, queue),
    )


def has_consumers(db: sqlite3.Connection, queue: int) -> bool:
    """Tell whether anybody consumes from a queue."""
    found = db.execute(
        "SELECT 1 FROM broker_consumers WHERE queue = ? AND state = 1 LIMIT 1", (queue,)
    )
    return found.fetchone() is not None


def remove_queue(db: sqlite3.Connection, id_: int, name: str) -> None:
    """Delete a queue with all that belongs to it."""
    sources = _unbind_all(db, name, is_queue=True)
    db.execute("DELETE FROM broker_messages WHERE queue = ?", (id_,))
    db.execute("DELETE FROM broker_depths WHERE queue = ?", (id_,))
    db.execute("DELETE FROM broker_consumers WHERE queue = ?", (id_,))
    db.execute("DELETE FROM broker_queues WHERE id = ?", (id_,))
    _remove_unused_exchanges(db, sources)
    db.execute(_RAISE_TOPOLOGY)


def remove_transient(db: sqlite3.Connection) -> None:
    """Delete the queues and exchanges that are not durable."""
    for id_, name in db.execute("SELECT id, name FROM broker_queues WHERE NOT durable").fetchall():
        remove_queue(db, id_, name)
    for (name,) in db.execute("SELECT name FROM broker_exchanges WHERE NOT durable").fetchall():
        _remove_exchange(db, name)
        db.execute(_RAISE_TOPOLOGY)


def no_queue(name: str, method: tuple[int, int]) -> exceptions.NotFound:
    """Return the error for a queue that is not there."""
    return exceptions.NotFound(f"NOT_FOUND - no queue {name!r}", method)


def _unbind_all(db: sqlite3.Connection, name: str, *, is_queue: bool) -> list[str]:
    """Remove every binding of a queue, or to an exchange; return the exchanges they came from."""
    found = db.execute(
        "SELECT DISTINCT source FROM broker_bindings WHERE is_queue = ? AND destination = ?",
        (is_queue, name),
    ).fetchall()
    db.execute(
        "DELETE FROM broker_bindings WHERE is_queue = ? AND destination = ?", (is_queue, name)
    )
    return [source for (source,) in found]


def _remove_exchange(db: sqlite3.Connection, name: str) -> None:
    sources = _unbind_all(db, name, is_queue=False)
    db.execute("DELETE FROM broker_bindings WHERE source = ?", (name,))
    db.execute("DELETE FROM broker_exchanges WHERE name = ?", (name,))
    _remove_unused_exchanges(db, sources)


def _remove_unused_exchanges(db: sqlite3.Connection, names: Iterable[str]) -> None:
    """Delete those of the exchanges, which just lost a binding, that want it with their last."""
    for name in names:
        automatic = db.execute(
            "SELECT 1 FROM broker_exchanges WHERE name = ? AND auto_delete", (name,)
        )
        if automatic.fetchone() and not _is_source(db, name):
            _remove_exchange(db, name)


def _is_source(db: sqlite3.Connection, name: str) -> bool:
    found = db.execute("SELECT 1 FROM broker_bindings WHERE source = ? LIMIT 1", (name,))
    return found.fetchone() is not None


def _check_queue_arguments(arguments: Mapping[str, Any]) -> None:
    for name, (least, most) in _NUMBERS.items():
        value = arguments.get(name, least)
        fits = isinstance(value, int) and not isinstance(value, bool)
        if not fits or value < least or (most is not None and value > most):
            raise _failed(f"invalid arg {name!r}: {value!r}", QUEUE_DECLARE)
    for name in _TEXTS:
        if not isinstance(arguments.get(name, ""), str):
            raise _failed(f"invalid arg {name!r}: {arguments[name]!r}", QUEUE_DECLARE)
    if "x-dead-letter-routing-key" in arguments and "x-dead-letter-exchange" not in arguments:
        raise _failed("x-dead-letter-routing-key without x-dead-letter-exchange", QUEUE_DECLARE)
    if arguments.get("x-overflow", _OVERFLOWS[0]) not in _OVERFLOWS:
        known = " and ".join(_OVERFLOWS)
        raise _failed(f"x-overflow: the embedded broker knows {known}", QUEUE_DECLARE)
    # Silence would be a lie: who sets a bound counts on it.
    if "x-max-length-bytes" in arguments:
        raise _failed("the embedded broker has no x-max-length-bytes", QUEUE_DECLARE)
    if arguments.get("x-queue-type") == "stream":
        raise _failed("the embedded broker has no streams", QUEUE_DECLARE)


def _same(what: str, method: tuple[int, int], values: Mapping[str, tuple[Any, Any]]) -> None:
    for name, (received, current) in values.items():
        if received != current:
            raise _failed(
                f"inequivalent arg {name!r} for {what}: received {received!r} but current is"
                f" {current!r}",
                method,
            )


def _failed(text: str, method: tuple[int, int]) -> exceptions.PreconditionFailed:
    return exceptions.PreconditionFailed(f"PRECONDITION_FAILED - {text}", method)


def _no_exchange(name: str, method: tuple[int, int]) -> exceptions.NotFound:
    return exceptions.NotFound(f"NOT_FOUND - no exchange {name!r}", method)
