"""Messages without a slot on RabbitMQ: passed on in order, and in nobody's way."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from zlib import crc32

import pika
import pytest

from servers import RabbitMQ
from waiting import until
from worker import App, Context, Event
from worker.barrier import BARRIER
from worker.config import Settings
from worker.consumer import Consumer
from worker.dedup.base import OWNER_BYTES, TOKEN_BYTES, Batch, Claim, StoreOptions, fingerprint
from worker.dedup.memory import MemoryStore
from worker.ending import Finish
from worker.message import BARRIER_HEADER, GENERATION_HEADER, UNPARK_HEADER
from worker.parking import MARKER
from worker.seal import SEAL
from worker.sharding.slots import shard_of

ALARM = "{resource_limit, memory, node()}"
PATIENCE = 20.0
SHARDS = 4


class Deposited(Event, name="user.deposited", key="user"):
    user: str
    number: int = 0


class Bank:
    """A consumer of all shards in a thread, what it was told, and a plain client beside it."""

    def __init__(self, amqp_url: str, **changes: object) -> None:
        self.app = App("bank")
        self.seen: list[Context] = []
        self.gate = threading.Event()
        self.gate.set()

        @self.app.on(Deposited)
        def deposited(event: Deposited, context: Context) -> None:
            self.gate.wait(PATIENCE)
            self.seen.append(context)

        facts = {"broker": amqp_url, "dedup": "memory://", "shards": SHARDS, **changes}
        self.settings: Settings = self.app.configure(facts)
        self.store = MemoryStore(StoreOptions())
        self.consumer: Any = self.another()
        self._connection = pika.BlockingConnection(pika.URLParameters(amqp_url))
        self.client = self._connection.channel()
        self.client.confirm_delivery()

    def another(self) -> Consumer:
        """Return a consumer with the same memory."""
        return Consumer(self.app, self.settings, shards=range(SHARDS), store=self.store)

    @contextmanager
    def running(self, *, dead: bytes = b"") -> Iterator[None]:
        """Consume while the block runs; then drain. The owner ``dead`` is known to be dead."""
        self.consumer.open()
        self.consumer.bury([dead] if dead else [])
        thread = threading.Thread(target=self.consumer.run, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self.consumer.drain(time.monotonic() + PATIENCE)
            thread.join(PATIENCE)
        assert not thread.is_alive()

    def deposit(self, user: str, number: int, **headers: object) -> None:
        """Publish as a client that knows nothing of slots."""
        properties = pika.BasicProperties(
            message_id=f"{user}-{number}", type="user.deposited", headers=headers or None
        )
        body = json.dumps({"user": user, "number": number}).encode()
        self.client.basic_publish("qw.events", "user.deposited", body, properties)

    def depth(self, queue: str) -> int:
        """Return how many messages wait in a queue."""
        found = self.client.queue_declare(queue, passive=True)
        return int(found.method.message_count)

    def close(self) -> None:
        """Disconnect."""
        self._connection.close()
        self.app.close()


@pytest.fixture
def bank(amqp_url: str) -> Iterator[Bank]:
    """A bank with four shards."""
    bank = Bank(amqp_url)
    yield bank
    bank.close()


@contextmanager
def alarm(rabbitmq: RabbitMQ) -> Iterator[None]:
    """The broker reads no connection that publishes, as when its memory is full."""
    rabbitmq.eval(f"rabbit_alarm:set_alarm({{{ALARM}, []}}).")
    try:
        yield
    finally:
        rabbitmq.eval(f"rabbit_alarm:clear_alarm({ALARM}).")


def in_order(bank: Bank) -> Callable[[], bool]:
    """Tell that each user's numbers came in order and in the shard of the user."""

    def check() -> bool:
        numbers: dict[str, list[int]] = {}
        for context in bank.seen:
            assert context.message.shard == shard_of(context.event.user, SHARDS)
            numbers.setdefault(context.event.user, []).append(context.event.number)
        return all(each == sorted(each) for each in numbers.values())

    return check


@pytest.mark.parametrize("keyed", [True, False], ids=["header", "payload"])
def test_a_key_reaches_its_shard_whoever_publishes(bank: Bank, keyed: bool) -> None:
    with bank.running(), bank.app.publisher() as out:
        for number in range(0, 40, 2):
            for user in ("ann", "bob", "cy"):
                out.publish(Deposited(user=user, number=number))
        out.flush()
        until(lambda: len(bank.seen) == 60, PATIENCE, "ours came")
        for number in range(1, 41, 2):
            for user in ("ann", "bob", "cy"):
                bank.deposit(user, number + 40, **({"qw-key": user} if keyed else {}))
        until(lambda: len(bank.seen) == 120, PATIENCE, "theirs came")

    assert in_order(bank)()
    assert bank.consumer.counters.relayed == 60
    assert bank.consumer.counters.received == bank.consumer.counters.acked == 120


def test_a_client_that_names_the_slot_needs_no_relay(bank: Bank) -> None:
    bank.consumer.open()
    bank.consumer.close()
    bank.deposit("ann", 1, **{"qw-key": "ann", "BCC": ["qw-slot-" + str(slot("ann"))]})

    assert bank.depth(f"bank.g1.{shard_of('ann', SHARDS)}") == 1
    assert bank.depth("bank.g1.relay") == 0


def test_somebody_s_event_that_looks_like_a_barrier_is_none_in_its_shard(bank: Bank) -> None:
    barriers: list[str] = []

    @bank.app.on(BARRIER)
    def look(_: dict[str, Any], context: Context) -> None:
        barriers.append(context.message.barrier)

    bank.consumer = bank.another()
    with bank.running():
        properties = pika.BasicProperties(
            message_id="m1", type=BARRIER, headers={BARRIER_HEADER: "mine"}
        )
        bank.client.basic_publish("qw.events", BARRIER, b"{}", properties)
        until(lambda: barriers, PATIENCE, "it came")

    assert bank.consumer.counters.relayed == 1
    assert barriers == [""]


def test_somebody_s_event_that_looks_like_a_seal_stops_no_shard(bank: Bank) -> None:
    """Everything of one shard: what is behind a seal belongs to the next generation."""
    seen: list[str] = []

    @bank.app.on(SEAL)
    def look(_: dict[str, Any], context: Context) -> None:
        seen.append(context.message_id)

    bank.consumer = bank.another()
    with bank.running():
        for number in range(1, 4):
            headers = {"qw-key": "ann", GENERATION_HEADER: 1}
            properties = pika.BasicProperties(message_id=f"m{number}", type=SEAL, headers=headers)
            bank.client.basic_publish("qw.events", SEAL, b"{}", properties)
        until(lambda: len(seen) == 3, PATIENCE, "all of them are handled")

    assert seen == ["m1", "m2", "m3"]


def publish_marker(bank: Bank, exchange: str, routing_key: str, key: str) -> None:
    """Say that all of the key was sent back, as what ends ``dlq replay --key`` does."""
    headers = {"qw-key": key, UNPARK_HEADER: 5}
    properties = pika.BasicProperties(message_id=f"of-{key}", type=MARKER, headers=headers)
    bank.client.basic_publish(exchange, routing_key, b"{}", properties)


def test_somebody_s_event_that_looks_like_the_end_of_a_replay_is_one_and_frees_no_key(
    bank: Bank,
) -> None:
    seen: list[str] = []

    @bank.app.on(MARKER)
    def look(_: dict[str, Any], context: Context) -> None:
        seen.append(context.message_id)

    bank.store.mark_parked("bank", "ann", 5)
    bank.consumer = bank.another()
    with bank.running():
        publish_marker(bank, "qw.events", MARKER, "ann")
        publish_marker(bank, "qw.events", MARKER, "bob")
        until(lambda: seen, PATIENCE, "it came")

    assert seen == ["of-bob"]
    assert "ann" in bank.store.parked("bank")
    assert bank.depth("bank.parked") == 1


def test_the_end_of_a_replay_that_came_by_the_front_frees_its_key(bank: Bank) -> None:
    """So it is sent where nobody knows which shards there are."""
    bank.store.mark_parked("bank", "ann", 5)
    with bank.running():
        publish_marker(bank, "bank.g1", "", "ann")
        until(lambda: "ann" not in bank.store.parked("bank"), PATIENCE, "it is free")


def slot(key: str) -> int:
    """Return what the documentation says of slots."""
    return crc32(key.encode()) % 1024


def test_what_is_being_passed_on_is_in_nobodys_way(rabbitmq: RabbitMQ, amqp_url: str) -> None:
    """A suspect runs and a drain ends although the broker confirms nothing."""
    bank = Bank(amqp_url)
    bank.consumer.open()
    bank.consumer.close()
    bank.deposit("suspect", 1, BCC=[f"qw-slot-{slot('suspect')}"])
    for number in range(50):
        bank.deposit("ann", number)
    dead, record = b"\1" * OWNER_BYTES, bank.app.handlers["deposited"].record_id("suspect-1")
    body = b'{"user": "suspect", "number": 1}'
    bank.store.apply(Batch(claims=[Claim(record, dead.ljust(TOKEN_BYTES), fingerprint(body))]))

    bank.consumer = bank.another()
    with alarm(rabbitmq):
        with bank.running(dead=dead):
            until(lambda: bank.seen, PATIENCE, "the suspect runs")
            assert bank.consumer.counters.relayed == 50
        assert bank.consumer.ended is Finish.DRAINED
    assert [context.message.id for context in bank.seen] == ["suspect-1"]

    bank.consumer = bank.another()
    with bank.running():
        until(lambda: len(bank.seen) == 51, PATIENCE, "the others come again")
    assert in_order(bank)()
    bank.close()


def test_a_dead_letter_of_the_relay_queue_returns_to_it(bank: Bank) -> None:
    with bank.running():
        bank.client.basic_publish("qw.events", "user.deposited", b"{}", pika.BasicProperties())
        until(lambda: bank.depth("bank.dlq") == 1, PATIENCE, "it is set aside")

    _, properties, _ = bank.client.basic_get("bank.dlq")
    assert properties.headers["qw-dead-queue"] == "bank.g1.relay"
    assert bank.consumer.counters.received == bank.consumer.counters.acked == 0


def test_a_burst_ends_after_what_had_to_be_passed_on(amqp_url: str) -> None:
    bank = Bank(amqp_url, burst=True)
    bank.consumer.open()
    bank.consumer.close()
    for number in range(50):
        bank.deposit("ann", number)
    bank.consumer = bank.another()
    bank.consumer.open()

    def is_idle() -> bool:
        bank.consumer.tick(0.01)
        return bool(bank.consumer.is_idle())

    until(is_idle, PATIENCE, "nothing is left")
    bank.consumer.close()
    assert len(bank.seen) == 50
    bank.close()
