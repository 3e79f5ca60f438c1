"""Random histories of the embedded broker against a model of lists: order, ownership, counts."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import amqp
import kombu.connection
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from worker.transport.memory import forget

#: kombu's, without its half of types.
Connection: Any = kombu.connection.Connection

names = itertools.count()
QUEUES = ("fifo", "single", "ranked")
ARGUMENTS = {
    "fifo": {},
    "single": {"x-single-active-consumer": True},
    "ranked": {"x-max-priority": 2},
}


@dataclass(eq=False)
class Entry:
    """A message as the model knows it."""

    number: int
    rank: int
    redelivered: bool = False


@dataclass(eq=False)
class Reader:
    """A consumer on a channel of its own: the real one, and what the model says that it holds."""

    connection: Any
    channel: Any
    queue: str
    prefetch: int
    given: list[amqp.Message] = field(default_factory=list)
    held: dict[int, Entry] = field(default_factory=dict)
    cancelled: bool = False


class BrokerMachine(RuleBasedStateMachine):
    """Publishes, takes, settles and closes at random. Runs over one transport."""

    transport = "memory"

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.mkdtemp()
        self.place = f"{self.folder}/broker.db"
        self.connections = [self.open() for _ in range(2)]
        self.publisher = self.open().channel()
        for name in QUEUES:
            self.publisher.queue_declare(
                name, durable=True, auto_delete=False, arguments=ARGUMENTS[name]
            )
        self.ready: dict[str, list[Entry]] = {name: [] for name in QUEUES}
        self.readers: list[Reader] = []
        self.numbers = itertools.count()

    def open(self) -> Any:
        connection = Connection(
            transport=f"worker.transport.{self.transport}:Transport", virtual_host=self.place
        )
        connection.connect()
        return connection

    def teardown(self) -> None:
        for connection in (*self.connections, self.publisher.connection.client):
            connection.release()
        forget(self.place.strip("/"))
        shutil.rmtree(self.folder)

    def give_back(self, queue: str, entries: list[Entry]) -> None:
        for entry in entries:
            entry.redelivered = True
        self.ready[queue] += entries
        self.ready[queue].sort(key=lambda entry: (entry.rank, entry.number))

    @rule(queue=st.sampled_from(QUEUES), priorities=st.lists(st.integers(0, 3), max_size=5))
    def publish(self, queue: str, priorities: list[int]) -> None:
        batch = []
        for priority in priorities:
            number = next(self.numbers)
            rank = -min(priority, 2) if queue == "ranked" else 0
            self.ready[queue].append(Entry(number, rank))
            message = amqp.Message(str(number).encode(), delivery_mode=2, priority=priority)
            batch.append((message, "", queue, True))
        self.publisher.publish_many(batch)
        self.ready[queue].sort(key=lambda entry: (entry.rank, entry.number))

    @precondition(lambda self: len(self.readers) < 5)
    @rule(which=st.integers(0, 1), queue=st.sampled_from(QUEUES), prefetch=st.integers(1, 4))
    def consume(self, which: int, queue: str, prefetch: int) -> None:
        channel = self.connections[which].channel()
        channel.basic_qos(0, prefetch, False)
        reader = Reader(self.connections[which], channel, queue, prefetch)
        channel.basic_consume(queue, consumer_tag="t", callback=reader.given.append)
        self.readers.append(reader)

    @rule(which=st.integers(0, 1))
    def drain(self, which: int) -> None:
        """Check that each reader is given the head of its queue, and no more than it may be."""
        connection = self.connections[which]
        with suppress(TimeoutError):
            connection.drain_events(timeout=0)
        # Readers of one queue that were served in one round had their turns in some order:
        # whoever got the lowest position had the first.
        served = [r for r in self.readers if r.given]
        served.sort(key=lambda r: self.position(r.queue, r.given[0]))
        for reader in served:
            assert reader.connection is connection
            assert not reader.cancelled
            if reader.queue == "single":
                assert reader is self.active("single")
            for message in reader.given:
                entry = self.ready[reader.queue].pop(0)
                assert int(message.body) == entry.number
                assert message.delivery_info["redelivered"] is entry.redelivered
                reader.held[message.delivery_tag] = entry
            reader.given.clear()
            assert len(reader.held) <= reader.prefetch

    def position(self, queue: str, message: amqp.Message) -> int:
        return [entry.number for entry in self.ready[queue]].index(int(message.body))

    def active(self, queue: str) -> Reader | None:
        readers = (r for r in self.readers if r.queue == queue)
        return next((r for r in readers if not r.cancelled or r.held), None)

    @rule(which=st.integers(0, 1))
    def drain_until_quiet(self, which: int) -> None:
        """Nothing that could be given is left lying."""
        for _ in range(100):
            before = sum(len(r.held) for r in self.readers)
            self.drain(which)
            if sum(len(r.held) for r in self.readers) == before:
                break
        for reader in self.readers:
            if reader.connection is not self.connections[which] or reader.cancelled:
                continue
            if reader.queue == "single" and reader is not self.active("single"):
                continue
            assert len(reader.held) == reader.prefetch or not self.ready[reader.queue]

    @precondition(lambda self: any(r.held for r in self.readers))
    @rule(data=st.data(), multiple=st.booleans())
    def acknowledge(self, data: st.DataObject, *, multiple: bool) -> None:
        reader = data.draw(st.sampled_from([r for r in self.readers if r.held]), label="reader")
        tag = data.draw(st.sampled_from(sorted(reader.held)), label="tag")
        reader.channel.basic_ack(tag, multiple=multiple)
        for settled in [t for t in reader.held if t == tag or (multiple and t < tag)]:
            del reader.held[settled]

    @precondition(lambda self: any(r.held for r in self.readers))
    @rule(data=st.data(), requeue=st.booleans())
    def reject(self, data: st.DataObject, *, requeue: bool) -> None:
        reader = data.draw(st.sampled_from([r for r in self.readers if r.held]), label="reader")
        tag = data.draw(st.sampled_from(sorted(reader.held)), label="tag")
        reader.channel.basic_reject(tag, requeue=requeue)
        entry = reader.held.pop(tag)
        if requeue:
            self.give_back(reader.queue, [entry])

    @precondition(lambda self: self.readers)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        reader = data.draw(st.sampled_from(self.readers), label="reader")
        reader.channel.basic_cancel("t")
        reader.cancelled = True

    @precondition(lambda self: self.readers)
    @rule(data=st.data())
    def close_channel(self, data: st.DataObject) -> None:
        reader = data.draw(st.sampled_from(self.readers), label="reader")
        reader.channel.close()
        self.readers.remove(reader)
        self.give_back(reader.queue, list(reader.held.values()))

    @rule(which=st.integers(0, 1))
    def close_connection(self, which: int) -> None:
        connection = self.connections[which]
        connection.release()
        for reader in [r for r in self.readers if r.connection is connection]:
            self.readers.remove(reader)
            self.give_back(reader.queue, list(reader.held.values()))
        self.connections[which] = self.open()

    @invariant()
    def counts_are_true(self) -> None:
        rows = self.publisher.connection.broker.database.rows(
            """SELECT q.name, d.ready, d.leased,
                (SELECT count(*) FROM broker_messages WHERE queue = q.id AND owner IS NULL),
                (SELECT count(*) FROM broker_messages WHERE queue = q.id AND owner IS NOT NULL)
                FROM broker_queues q JOIN broker_depths d ON d.queue = q.id"""
        )
        for name, ready, leased, ready_rows, leased_rows in rows:
            held = sum(len(r.held) for r in self.readers if r.queue == name)
            assert (ready, leased) == (ready_rows, leased_rows)
            assert (ready, leased) == (len(self.ready[name]), held)


class SqliteMachine(BrokerMachine):
    """The same over a file."""

    transport = "sqlite"


QUICK = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
SLOWER = settings(QUICK, max_examples=15)

TestMemory = pytest.mark.timeout(300)(BrokerMachine.TestCase)
TestMemory.settings = QUICK
TestSqlite = pytest.mark.timeout(300)(SqliteMachine.TestCase)
TestSqlite.settings = SLOWER
