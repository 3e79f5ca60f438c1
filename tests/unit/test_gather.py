"""What is read goes into lanes in order, and never past a key that another process parked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from random import Random
from typing import Any

import pytest

from worker import App, ConfigurationError, Event, RetryPolicy
from worker.consumer import Consumer
from worker.dedup.memory import MemoryStore
from worker.errors import DedupUnavailable
from worker.telemetry import PublishRefused
from worker.testing import TestWorker
from worker.testing.pools import INLINE


class Step(Event, name="step", key="line"):
    """One of a sequence."""

    line: str
    number: int = 0


def parking_app(done: list[int]) -> App:
    app = App("bank")

    @app.on(Step, retry=RetryPolicy(attempts=1, exhausted="park_key"))
    def work(event: Step) -> None:
        if event.number == 0:
            raise ValueError("no")
        done.append(event.number)

    return app


def second_consumer(worker: TestWorker) -> Consumer:
    """Return one that waits for its turn: each queue has one consumer at a time."""
    consumer = Consumer(
        worker.app,
        worker.settings,
        shards=range(worker.settings.shards),
        store=worker.store,
        clock=worker.clock,
        random=Random(0),
        pools=INLINE,
    )
    consumer.open()
    return consumer


def go_on(worker: TestWorker, consumer: Any, ticks: int) -> None:
    for _ in range(ticks):
        if not consumer.tick(0):
            worker.clock.advance_to(min(consumer.next_due, worker.clock() + 1))


def finish(worker: TestWorker, consumer: Consumer) -> None:
    for _ in range(200):
        if not consumer.tick(0):
            if consumer.is_idle():
                return
            worker.clock.advance_to(consumer.next_due)
    raise AssertionError(consumer.statistics())


def test_who_takes_a_shard_over_knows_what_its_predecessor_parked() -> None:
    done: list[int] = []
    with TestWorker(parking_app(done)) as worker:
        worker.run()
        standby = second_consumer(worker)
        standby.tick(0)
        worker.publish(Step(line="a"))
        worker.run()  # parked, by the one whose turn it is
        assert len(worker.parked) == 1
        worker.drain()

        worker.publish(Step(line="a", number=1))
        worker.publish(Step(line="b", number=2))
        finish(worker, standby)

        assert done == [2]
        assert [letter.reason.split(":")[0] for letter in worker.parked] == [
            "failed at attempt 1",
            "its key is parked",
        ]
        standby.close()


def test_nothing_begins_before_the_parked_keys_are_known() -> None:
    class Moody(MemoryStore):
        away = False

        def parked(self, service: str) -> Mapping[str, int]:
            if self.away:
                raise DedupUnavailable("the store is away")
            return super().parked(service)

    done: list[int] = []
    with TestWorker(parking_app(done)) as worker:
        worker.store.__class__ = Moody
        store: Any = worker.store
        store.away = True
        worker.publish(Step(line="a", number=1))
        worker.publish(Step(line="a", number=2))
        consumer: Any = worker._consumer  # to go tick by tick
        go_on(worker, consumer, 40)
        assert done == []

        store.away = False
        worker.run()
        assert done == [1, 2]


def test_what_could_not_be_built_leaves_the_lifespan() -> None:
    log: list[str] = []
    app = App("bank")

    @app.lifespan
    def resources() -> Iterator[None]:
        log.append("open")
        yield
        log.append("close")

    class Broken(MemoryStore):
        def parked(self, service: str) -> Mapping[str, int]:
            raise ConfigurationError("no such table")

    with TestWorker(app) as worker:
        log.clear()
        worker.store.__class__ = Broken
        with pytest.raises(ConfigurationError):
            second_consumer(worker)

        assert log == ["open", "close"]


def test_a_dead_letter_that_the_broker_refuses_is_told_and_kept() -> None:
    done: list[int] = []
    app = parking_app(done)
    with TestWorker(app) as worker:
        consumer: Any = worker._consumer
        channel = consumer._link._inbound.connection.channel()
        full = {"x-max-length": 0, "x-overflow": "reject-publish"}
        channel.queue_delete("bank.dlq")
        channel.queue_declare("bank.dlq", durable=True, auto_delete=False, arguments=full)
        worker.publish_raw(b"no json", name="step", id="a-letter", key="a")
        go_on(worker, consumer, 40)
        refused = [e for e in worker.runtime_events if isinstance(e, PublishRefused)]
        assert [(e.message_id, e.to) for e in refused] == [("a-letter", "bank.dlq")]

        channel.queue_delete("bank.dlq")
        worker.run()
        assert [letter.message_id for letter in worker.dead_letters] == ["a-letter"]
