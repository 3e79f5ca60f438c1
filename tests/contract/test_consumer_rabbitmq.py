"""What a consumer on RabbitMQ does that an embedded broker would hide."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from servers import RabbitMQ
from waiting import until
from worker import App, Context, Event, Retry
from worker.config import Settings
from worker.consumer import Consumer
from worker.dedup.base import StoreOptions
from worker.dedup.memory import MemoryStore
from worker.message import Outgoing

ALARM = "{{resource_limit, memory, node()}, []}"
PATIENCE = 20.0


class Parent(Event, name="parent", key="line"):
    line: str


class Child(Event, name="child", key="line"):
    line: str


class Asking(Event, name="asking", key="line"):
    line: str


@contextmanager
def consuming(app: App, settings: Settings) -> Iterator[Any]:
    """Run a consumer in a thread; it drains when the block ends."""
    consumer = Consumer(app, settings, shards=[0], store=MemoryStore(StoreOptions()))
    consumer.open()
    thread = threading.Thread(target=consumer.run, daemon=True)
    thread.start()
    try:
        yield consumer
    finally:
        consumer.drain(time.monotonic() + 5)
        thread.join(PATIENCE)
    assert not thread.is_alive()


def test_what_a_confirm_or_a_timer_makes_ready_is_gone_on_with_at_once(amqp_url: str) -> None:
    """Were each step to wait for the next look at the clock, this would take twice as long."""
    app = App("bank")
    done: list[str] = []

    @app.on(Parent)
    def parent(event: Parent, context: Context) -> None:
        context.publish(Child(line=event.line))
        done.append("parent")

    @app.on(Asking)
    def asking(event: Asking, context: Context) -> None:
        if context.attempt < 4:
            raise Retry(delay=0.02)
        done.append("asked")

    settings = app.configure({"broker": amqp_url, "dedup": "memory://", "shards": 1})
    with consuming(app, settings):
        with app.publisher() as out:
            for _ in range(100):
                out.publish(Parent(line="a"))
            for _ in range(20):
                out.publish(Asking(line="b"))
        until(lambda: len(done) == 120, PATIENCE, "all are done")
    app.close()


def test_what_is_published_arrives_while_the_block_is_open(amqp_url: str) -> None:
    app = App("bank", broker=amqp_url)
    done: list[str] = []

    @app.on(Child)
    def child(event: Child) -> None:
        done.append(event.line)

    settings = app.configure({"dedup": "memory://", "shards": 1})
    with consuming(app, settings), app.publisher() as out:
        out.publish(Child(line="a"))
        until(lambda: done == ["a"], PATIENCE, "the first is done")
        out.publish(Child(line="b"))  # soon enough to be of the same burst
        until(lambda: done == ["a", "b"], PATIENCE, "the second is done")
    app.close()


@contextmanager
def alarm(rabbitmq: RabbitMQ) -> Iterator[None]:
    """The broker reads no connection that publishes, as when its memory is full."""
    rabbitmq.eval(f"rabbit_alarm:set_alarm({ALARM}).")
    try:
        yield
    finally:
        rabbitmq.eval("rabbit_alarm:clear_alarm({resource_limit, memory, node()}).")


def test_a_broker_that_takes_no_messages_does_not_stop_the_loop(
    rabbitmq: RabbitMQ, amqp_url: str
) -> None:
    app = App("bank")

    @app.on(Asking)
    def asking(event: Asking) -> None: ...

    settings = app.configure({"broker": amqp_url, "dedup": "memory://", "shards": 1})
    consumer: Any = Consumer(app, settings, shards=[0], store=MemoryStore(StoreOptions()))
    consumer.open()
    link = consumer._link  # the one place that would wait for the broker

    def published() -> bool:
        link.publish()
        return bool(link.outstanding == 0)

    def in_time(call: Callable[[], object]) -> list[object]:
        answers: list[object] = []
        thread = threading.Thread(target=lambda: answers.append(call()), daemon=True)
        thread.start()
        thread.join(PATIENCE)
        return answers

    message = Outgoing("amq.fanout", "", b"{}", "an id", {}, {})
    link.send(message, lambda _: None)
    until(published, PATIENCE, "it has published, so an alarm blocks it")
    with alarm(rabbitmq):
        link.send(message, lambda _: None)
        assert in_time(lambda: link.declare_retry(1.0)) == ["bank.retry.1000"]
        assert in_time(link.depths) == [{"bank.g1.0": 0, "bank.retry.1000": 0}]
    until(published, PATIENCE, "what waited is published")
    consumer.close()
    app.close()
