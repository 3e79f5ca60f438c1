"""The exchanges, queues and bindings as they are declared, and routing by them.

What was looked up is remembered until the declarations change, which a number in the database
tells. Every publish checks that number inside of its own transaction, so a message is always
routed by the bindings of the moment in which it is stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from amqp import exceptions

from worker.transport.embedded.encoding import decode_table
from worker.transport.routing import (
    DEFAULT_ROUTER,
    Binding,
    Destination,
    Found,
    Route,
    make_router,
    resolve,
    trace,
)

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Mapping

    from worker.transport.embedded.database import Database

#: Routes that are remembered; then they are all forgotten and remembered anew.
_REMEMBERED_ROUTES = 8192

_TOPOLOGY = "SELECT topology FROM broker_state"
_QUEUES = "SELECT id, name, durable, auto_delete, connection, arguments FROM broker_queues WHERE "


@dataclass(frozen=True, slots=True)
class Exchange:
    """A declared exchange."""

    name: str
    type: str
    durable: bool
    auto_delete: bool
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Queue:
    """A declared queue, and what its arguments mean. Times are in milliseconds."""

    id: int
    name: str
    durable: bool
    auto_delete: bool
    #: The connection that an exclusive queue belongs to.
    connection: int | None
    arguments: Mapping[str, Any]
    single_active: bool
    max_priority: int
    ttl: int | None
    #: Whether its messages have ranks, or expire by themselves.
    ranks_or_expires: bool
    max_length: int | None
    rejects_when_full: bool
    dead_letter_exchange: str | None
    dead_letter_routing_key: str | None

    @property
    def exclusive(self) -> bool:
        """Whether only one connection may use it."""
        return self.connection is not None

    @classmethod
    def of(  # noqa: PLR0913, PLR0917 - a row
        cls,
        id_: int,
        name: str,
        durable: int,
        auto_delete: int,
        connection: int | None,
        arguments: bytes,
    ) -> Queue:
        """Make it from its row."""
        table = decode_table(arguments)
        max_priority, ttl = table.get("x-max-priority", 0), table.get("x-message-ttl")
        return cls(
            id=id_,
            name=name,
            durable=bool(durable),
            auto_delete=bool(auto_delete),
            connection=connection,
            arguments=table,
            single_active=bool(table.get("x-single-active-consumer", False)),
            max_priority=max_priority,
            ttl=ttl,
            ranks_or_expires=max_priority > 0 or ttl is not None,
            max_length=table.get("x-max-length"),
            rejects_when_full=table.get("x-overflow") == "reject-publish",
            dead_letter_exchange=table.get("x-dead-letter-exchange"),
            dead_letter_routing_key=table.get("x-dead-letter-routing-key"),
        )


class Catalog:
    """One connection's memory of what is declared."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._topology = -1
        self._queues: dict[str, Queue] = {}
        self._queues_by_id: dict[int, Queue] = {}
        self._exchanges: dict[str, Exchange] = {}
        self._found: dict[str, Found] = {}
        self._routes: dict[tuple[str, str], Route] = {}
        self._named: dict[tuple[str, ...], tuple[Queue, ...]] = {}

    @property
    def topology(self) -> int:
        """The number of the declarations that are remembered."""
        return self._topology

    def refresh(self, db: sqlite3.Connection | None = None) -> bool:
        """Forget what is remembered if the declarations changed; tell whether they did.

        ``db`` is the transaction to look from, if any.
        """
        ((topology,),) = self._rows(db)(_TOPOLOGY)
        if topology == self._topology:
            return False
        self.forget()
        self._topology = topology
        return True

    def forget(self) -> None:
        """Forget what is remembered: it was read within what is undone."""
        self._topology = -1
        self._queues.clear()
        self._queues_by_id.clear()
        self._exchanges.clear()
        self._found.clear()
        self._routes.clear()
        self._named.clear()

    def queue(self, name: str, db: sqlite3.Connection | None = None) -> Queue | None:
        """Return the queue of this name. Refresh first."""
        queue = self._queues.get(name)
        return queue or self._load_queue(_QUEUES + "name = ?", name, db)

    def queue_by_id(self, id_: int, db: sqlite3.Connection | None = None) -> Queue | None:
        """Return the queue of this id. Refresh first."""
        queue = self._queues_by_id.get(id_)
        return queue or self._load_queue(_QUEUES + "id = ?", id_, db)

    def exchange(self, name: str, db: sqlite3.Connection | None = None) -> Exchange | None:
        """Return the exchange of this name; the default one is none. Refresh first."""
        exchange = self._exchanges.get(name)
        if exchange is None:
            rows = self._rows(db)(
                "SELECT type, durable, auto_delete, arguments FROM broker_exchanges WHERE name = ?",
                (name,),
            )
            for type_, durable, auto_delete, arguments in rows:
                exchange = Exchange(
                    name, type_, bool(durable), bool(auto_delete), decode_table(arguments)
                )
                self._exchanges[name] = exchange
        return exchange

    def route(
        self,
        exchange: str,
        key: str,
        properties: Mapping[str, Any],
        db: sqlite3.Connection | None = None,
    ) -> tuple[Queue, ...]:
        """Return the queues that a message goes to, each once. Refresh first.

        Raises amqp NotFound where there is no such exchange.
        """
        route = self._routes.get((exchange, key))
        if route is None:
            if exchange and self.exchange(exchange, db) is None:
                raise exceptions.NotFound(f"NOT_FOUND - no exchange {exchange!r}", (60, 40))
            route = trace(exchange, key, lambda name: self._find(name, db))
            if len(self._routes) >= _REMEMBERED_ROUTES:
                self._routes.clear()
            self._routes[exchange, key] = route
        names = resolve(route, key, properties, lambda name: self._find(name, db))
        queues = self._named.get(names)
        if queues is None:
            found = (self.queue(name, db) for name in names)
            queues = tuple(queue for queue in found if queue is not None)
            if len(self._named) >= _REMEMBERED_ROUTES:
                self._named.clear()
            self._named[names] = queues
        return queues

    def _find(self, name: str, db: sqlite3.Connection | None) -> Found | None:
        found = self._found.get(name)
        if found is not None:
            return found
        if not name:
            return Found(DEFAULT_ROUTER, None)
        exchange = self.exchange(name, db)
        if exchange is None:
            return None
        rows = self._rows(db)(
            """SELECT is_queue, destination, routing_key, arguments
                FROM broker_bindings WHERE source = ?""",
            (name,),
        )
        bindings = [
            Binding(Destination(destination, bool(is_queue)), key, decode_table(arguments))
            for is_queue, destination, key, arguments in rows
        ]
        found = Found(
            make_router(exchange.type, exchange.arguments, bindings),
            exchange.arguments.get("alternate-exchange"),
        )
        self._found[name] = found
        return found

    def _load_queue(self, sql: str, value: object, db: sqlite3.Connection | None) -> Queue | None:
        for row in self._rows(db)(sql, (value,)):
            queue = Queue.of(*row)
            self._queues[queue.name] = self._queues_by_id[queue.id] = queue
            return queue
        return None

    def _rows(self, db: sqlite3.Connection | None) -> Callable[..., list[Any]]:
        if db is None:
            return self._database.rows
        return lambda sql, parameters=(): db.execute(sql, parameters).fetchall()
