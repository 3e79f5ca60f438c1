"""The servers of a world: broker, dedup store and lease store in memory, behind the seams."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from simulation.troubles import BROKER, LEASES, STORE, Seams
from worker.dedup.base import NOBODY, Answers, Batch, Complete, Release, Renew, StoreOptions
from worker.dedup.memory import Memory, MemoryStore
from worker.leases.base import LeaseOptions, Sync, View
from worker.leases.memory import MemoryLeases
from worker.sharding.generations import PLAN, Plan
from worker.transport.embedded import presence
from worker.transport.embedded.database import Database
from worker.transport.embedded.process import Process as Alive
from worker.transport.embedded.schema import install

if TYPE_CHECKING:
    from simulation.world import World

NAME = "simulation"


class Lives(Alive):
    """A process of a world, as the broker sees it: what died was cleared up after at once."""

    seams: Seams | None = None

    @classmethod
    def current(cls) -> Lives:
        running = cls.seams.running if cls.seams is not None else None
        return cls(0 if running is None else running.pid, "", "world", "boot")

    def is_visible(self, here: Alive) -> bool:
        return True

    def is_known_dead(self, here: Alive) -> bool:
        return False


def as_of_quorum_queues(ready: str) -> str:
    """Return the query for the consumers that are served, with a single active one as RabbitMQ's.

    The embedded broker serves the next consumer once its predecessor holds nothing. A quorum queue
    serves it as soon as its predecessor is cancelled, ahead of what that one still holds; which
    returns when its channel closes (tried on RabbitMQ 3.10).
    """
    oldest = "WHERE o.queue = c.queue))"
    if not ready.endswith(oldest):
        raise LookupError("the embedded broker asks for its consumers in another way now")
    return f"{ready.removesuffix(oldest)}WHERE o.queue = c.queue AND o.state = 1))"


class Broker(Database):
    """The embedded broker's database: each transaction of a process is a call to the broker."""

    def __init__(self, seams: Seams, connection: sqlite3.Connection) -> None:
        super().__init__(connection, NAME, patience=0.0, lock=nullcontext())
        self._seams = seams
        self.changes = 0

    @classmethod
    def empty(cls, seams: Seams) -> Broker:
        broker = cls(seams, _in_memory())
        install(broker)
        return broker

    def copy(self, seams: Seams) -> Broker:
        """Return a broker of its own with what this one holds."""
        connection = _in_memory()
        self._connection.backup(connection)
        return Broker(seams, connection)

    @contextmanager
    def transaction(self, *, durable: bool = False) -> Iterator[sqlite3.Connection]:
        self._seams.before(BROKER)
        with super().transaction(durable=durable) as db:
            yield db
        self._seams.after(BROKER)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Leave each a call of its own, as RabbitMQ has no such: a process may die between them."""
        yield

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[Any]:
        self._seams.before(BROKER)
        return super().rows(sql, parameters)

    def version(self) -> tuple[int, int]:
        return self._connection.total_changes, 0

    def close(self) -> None:
        """Nothing: it outlives its connections."""

    def forget(self) -> None:
        self._connection.close()

    def _set_durable(self, durable: bool) -> None:
        pass

    def end_connections(self, pid: int) -> None:
        """End the connections of a process, as its death does, or the network."""
        ids = [
            id_
            for (id_,) in self._connection.execute(
                "SELECT id FROM broker_connections WHERE pid = ? ORDER BY id", (pid,)
            ).fetchall()
        ]
        if ids:
            self._connection.execute("BEGIN IMMEDIATE")
            presence._clear_up(self._connection, ids)
            self._connection.execute("COMMIT")

    def consumed_by(self, connection: int) -> set[str]:
        """Return the queues that a connection consumes."""
        found = self._connection.execute(
            "SELECT q.name FROM broker_consumers c JOIN broker_queues q ON q.id = c.queue"
            " WHERE c.connection = ?",
            (connection,),
        )
        return {name for (name,) in found.fetchall()}

    def depth(self, queues: Sequence[str]) -> int:
        """Return how many messages are in these queues, delivered or not."""
        found = self._connection.execute(
            "SELECT q.name, d.ready + d.leased FROM broker_depths d"
            " JOIN broker_queues q ON q.id = d.queue"
        )
        return sum(number for name, number in found.fetchall() if name in queues)

    def names(self, kind: str) -> list[str]:
        """Return the names of all ``queues``, or ``exchanges``."""
        tables = {
            "queues": "SELECT name FROM broker_queues ORDER BY id",
            "exchanges": "SELECT name FROM broker_exchanges ORDER BY name",
        }
        return [name for (name,) in self._connection.execute(tables[kind]).fetchall()]

    def bodies_in(self, queue: str) -> list[bytes]:
        """Return the bodies of what a queue holds, in order."""
        found = self._connection.execute(
            "SELECT m.body FROM broker_messages m JOIN broker_queues q ON q.id = m.queue"
            " WHERE q.name = ? ORDER BY m.rank, m.number",
            (queue,),
        )
        return [bytes(body) for (body,) in found.fetchall()]

    def queues_with(self, body: bytes) -> list[str]:
        """Return the queues that hold a message of this body, once for each."""
        found = self._connection.execute(
            "SELECT q.name FROM broker_messages m JOIN broker_queues q ON q.id = m.queue"
            " WHERE m.body = ?",
            (body,),
        )
        return [name for (name,) in found.fetchall()]


def _in_memory() -> sqlite3.Connection:
    connection = sqlite3.connect(
        ":memory:", isolation_level=None, check_same_thread=False, cached_statements=256
    )
    connection.execute("PRAGMA synchronous=OFF")
    connection.execute("PRAGMA journal_mode=MEMORY")
    return connection


class Store(MemoryStore):
    """A process's handle of the dedup store."""

    def __init__(self, world: World, options: StoreOptions, memory: Memory) -> None:
        super().__init__(options, world.clock, memory)
        self._world = world
        self._seams = world.seams

    def apply(self, batch: Batch) -> Answers:
        return self._seams.reach(STORE, lambda: self._apply(batch))

    def _apply(self, batch: Batch) -> Answers:
        """Apply it; a stale owner changes nothing by that."""
        held, done = self._memory.records.held, self._memory.records.done
        changes: list[Complete | Release | Renew]
        changes = [*batch.completes, *batch.releases, *batch.renewals]
        others = {
            entry.record: held[entry.record]
            for entry in changes
            if entry.record in held and held[entry.record].token not in (None, NOBODY, entry.token)
        }
        for entry in batch.completes:
            if entry.effect and entry.record not in done:
                self._world.check_children(entry.record)
        answers = super().apply(batch)
        self._world.crashes.check_claims(batch.claims, answers.claims)
        claimed = {claim.record for claim in batch.claims}
        for record, before in others.items():
            if record in done or (held.get(record) != before and record not in claimed):
                id_, handler = self._world.named(record)
                text = f"a stale owner changed a record: {id_} at {handler}"
                self._world.ledger.complain(None, text, id_)
        return answers

    def mark_parked(self, service: str, key: str, at: int) -> None:
        mark = super().mark_parked
        self._seams.reach(STORE, lambda: mark(service, key, at))

    def parked(self, service: str) -> Mapping[str, int]:
        parked = super().parked
        return self._seams.reach(STORE, lambda: parked(service))

    def unpark(self, service: str, key: str, upto: int) -> bool:
        unpark = super().unpark
        return self._seams.reach(STORE, lambda: unpark(service, key, upto))


class Leases(MemoryLeases):
    """The lease store, which all members share."""

    def __init__(self, world: World, options: LeaseOptions) -> None:
        super().__init__(options, world.clock)
        self._world = world
        self._seams = world.seams

    def sync(self, service: str, sync: Sync) -> View:
        return self._seams.reach(LEASES, lambda: self._sync(service, sync))

    def _sync(self, service: str, sync: Sync) -> View:
        before = self._owners(service)
        view = super().sync(service, sync)
        for name, row in self._owners(service).items():
            if row != before.get(name):
                owner, epoch = row
                self._world.note("lease", name, "is of", self._world.member_of(owner), epoch)
        return view

    def _owners(self, service: str) -> dict[str, tuple[str, int]]:
        book = self._books.get(service)
        rows = {} if book is None else book.leases
        return {name: (row.owner, row.epoch) for name, row in rows.items()}

    def write(self, service: str, name: str, version: int, text: str) -> bool:
        return self._seams.reach(LEASES, lambda: self._write(service, name, version, text))

    def _write(self, service: str, name: str, version: int, text: str) -> bool:
        written = super().write(service, name, version, text)
        if written and name == PLAN:
            plan = Plan.load(text)
            where = "" if plan.phase is None else f", on the way: {plan.phase.value}"
            self._world.note("plan", f"of generation {plan.current.number}{where}")
        return written
