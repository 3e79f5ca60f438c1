"""The embedded broker under kombu's own producers, consumers, queues and mixins."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kombu.common
import kombu.connection
import kombu.entity
import kombu.mixins
import kombu.pools
import pytest

from waiting import until
from worker.transport import memory, sqlite

#: kombu's, without its half of types.
Connection: Any = kombu.connection.Connection
Exchange: Any = kombu.entity.Exchange
Queue: Any = kombu.entity.Queue
binding: Any = kombu.entity.binding
ConsumerMixin: Any = kombu.mixins.ConsumerMixin
pools: Any = kombu.pools
common: Any = kombu.common

Connect = Callable[..., Any]


EVENTS = Exchange("events", "topic", durable=True)


def consume_all(connection: Any, timeout: float = 0.1) -> None:
    for _ in common.eventloop(connection, timeout=timeout, ignore_timeouts=False):
        pass


def test_a_producer_and_a_consumer(connect: Connect) -> None:
    connection = connect()
    queue = Queue("bank", EVENTS, routing_key="user.*", max_priority=5, message_ttl=60)
    given: list[tuple[Any, Any]] = []

    def receive(body: Any, message: Any) -> None:
        given.append((body, message.headers))
        message.ack()

    channel = connection.channel()
    consumer = connection.Consumer(
        [queue], channel, callbacks=[receive], accept=["json"], prefetch_count=2
    )
    producer = connection.Producer(exchange=EVENTS)
    with consumer:
        for number in range(5):
            producer.publish(
                {"n": number}, routing_key="user.x", headers={"h": number}, expiration=30
            )
        with pytest.raises(TimeoutError):
            consume_all(connection)
    assert given == [({"n": number}, {"h": number}) for number in range(5)]
    assert channel.queue_declare("bank", passive=True) == ("bank", 0, 0)


def test_entities_of_every_kind(connect: Connect) -> None:
    channel = connect().channel()
    inner = Exchange("inner", "fanout", durable=False, channel=channel)
    EVENTS(channel).declare()
    inner.declare()
    inner.bind_to(EVENTS, routing_key="user.#")
    headers = Exchange("headers", "headers", channel=channel)
    queue = Queue(
        "q",
        bindings=[
            binding(inner),
            binding(headers, arguments={"x-match": "any", "kind": "k"}),
        ],
        channel=channel,
    )
    queue.declare()
    EVENTS(channel).publish(EVENTS(channel).Message("one"), routing_key="user.x.y")
    headers.publish(headers.Message("two", headers={"kind": "k"}), routing_key="")
    assert [queue.get(no_ack=True).body for _ in range(2)] == [b"one", b"two"]
    assert queue.get() is None
    inner.unbind_from(EVENTS, routing_key="user.#")
    EVENTS(channel).publish("three", routing_key="user.x")
    assert queue.purge() == 0
    queue.unbind_from(headers, arguments={"x-match": "any", "kind": "k"})
    queue.delete(if_empty=True)
    inner.delete()
    headers.delete(if_unused=True)


def test_a_simple_queue(connect: Connect) -> None:
    connection = connect()
    with connection.SimpleQueue("jobs") as queue:
        queue.put({"job": 1})
        queue.put({"job": 2})
        assert queue.qsize() == 2
        queue.get(timeout=1).requeue()
        second, first = queue.get(timeout=1), queue.get(timeout=1)
        assert (second.payload, first.payload) == ({"job": 2}, {"job": 1})
        assert first.delivery_info["redelivered"]
        first.ack()
        second.ack()
        with pytest.raises(queue.Empty):
            queue.get(block=False)


def test_messages_are_settled_through_kombu_s_own_objects(connect: Connect) -> None:
    connection = connect()
    channel = connection.channel()
    queue = Queue("q", channel=channel)
    queue.declare()
    producer = connection.Producer(channel)
    for number in range(4):
        producer.publish(number, routing_key="q")
    first, second, third, fourth = (queue.get() for _ in range(4))
    second.ack(multiple=True)
    assert not first.acknowledged
    third.reject()
    fourth.requeue()
    assert queue.get().payload == 3
    channel.close()
    assert Queue("q", channel=connection.channel()).get().payload == 3


def test_a_producer_pool_and_publish_with_retry(connect: Connect) -> None:
    connection = connect()
    queue = Queue("q", EVENTS, routing_key="k")
    with pools.producers[connection].acquire(block=True) as producer:
        producer.publish({"n": 1}, exchange=EVENTS, routing_key="k", declare=[queue], retry=True)
        with producer.batch():
            producer.publish({"n": 2}, exchange=EVENTS, routing_key="k")
    bound = queue(connection.channel())
    assert [bound.get().payload["n"] for _ in range(2)] == [1, 2]
    pools.reset()


def test_ensure_reconnects_and_delivers_again(connect: Connect) -> None:
    connection = connect()
    queue = Queue("q", durable=True)
    given: list[int] = []
    consumer = connection.Consumer([queue], on_message=lambda m: given.append(m.payload))
    consumer.consume()
    producer = connection.Producer()
    producer.publish(1, routing_key="q")
    connection.drain_events(timeout=1)
    connection.connection.close()  # as if it had broken
    publish = connection.ensure(producer, producer.publish, max_retries=2)
    publish(2, routing_key="q")
    consumer.revive(connection.channel())
    consumer.consume()
    until(lambda: connection.drain_events(timeout=5) or len(given) == 3)
    assert given == [1, 1, 2]


def test_a_consumer_mixin_in_a_thread_of_its_own(connect: Connect) -> None:
    class Service(ConsumerMixin):  # type: ignore[misc] # kombu is untyped
        def __init__(self) -> None:
            self.connection = connect()
            self.given: list[int] = []

        def get_consumers(self, consumer: Any, channel: Any) -> list[Any]:
            return [consumer([Queue("q")], callbacks=[self.receive])]

        def receive(self, body: int, message: Any) -> None:
            self.given.append(body)
            message.ack()
            self.should_stop = body == 9

    service = Service()
    thread = threading.Thread(target=service.run)
    producer = connect().Producer()
    queue = Queue("q")(producer.channel)
    queue.declare()
    thread.start()
    for number in range(10):
        producer.publish(number, routing_key="q")
    thread.join(10)
    assert service.given == list(range(10))


def test_what_kombu_asks_a_transport(connect: Connect) -> None:
    connection = connect(lease=6)
    assert connection.connected
    assert connection.supports_heartbeats
    assert connection.get_heartbeat_interval() == 2
    assert connection.qos_semantics_matches_spec
    assert connection.transport.driver_version()
    assert connection.supports_exchange_type("x-consistent-hash")
    assert not connection.supports_exchange_type("x-delayed-message")
    connection.heartbeat_check()
    clone = connection.clone()
    clone.connect()
    assert clone.connection is not connection.connection
    clone.release()
    connection.release()
    assert not connection.connected


def test_a_file_is_named_by_host_or_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(url: str) -> Any:
        connection = Connection(url, transport=sqlite.Transport)
        connection.connect()
        connection.release()

    opened(f"sqlite:///{tmp_path}/absolute.db")
    monkeypatch.chdir(tmp_path)
    opened("sqlite:///relative.db")
    opened("sqlite:///with%20blank.db")
    assert {p.name for p in tmp_path.iterdir()} >= {"absolute.db", "relative.db", "with blank.db"}
    for nothing in ("sqlite://", "sqlite:///", "sqlite://file.db"):
        with pytest.raises(sqlite.Transport.connection_errors, match="name the broker's file"):
            opened(nothing)


def test_brokers_in_memory_are_told_apart_by_name() -> None:
    def open_named(url: str) -> Any:
        connection = Connection(url, transport=memory.Transport)
        connection.connect()
        return connection

    one, same, other, unnamed = map(
        open_named, ("memory://one", "memory://one", "memory://other", "memory://")
    )
    one.channel().queue_declare("q", durable=True, auto_delete=False)
    assert same.channel().queue_declare("q", passive=True).queue == "q"
    for connection in (other, unnamed):
        with pytest.raises(connection.channel_errors):
            connection.channel().queue_declare("q", passive=True)
    one.release()
    same.release()
    again = open_named("memory://one")
    again.channel().queue_declare("q", passive=True)

    memory.forget("one")
    with pytest.raises(again.recoverable_connection_errors):
        again.channel().queue_declare("q", passive=True)
    again.release()
    with pytest.raises(again.channel_errors):
        open_named("memory://one").channel().queue_declare("q", passive=True)
    other.release()
    unnamed.release()
    for name in ("one", "other", "default", "never there"):
        memory.forget(name)
