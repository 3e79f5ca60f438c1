"""The exchange that spreads a service's messages, and what tells that it is bound, on RabbitMQ."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from functools import partial
from operator import methodcaller
from pathlib import Path
from typing import Any

import amqp
import pytest

from waiting import until
from worker import App, Event
from worker.config import Settings, load_settings
from worker.consumer import Consumer
from worker.dedup.base import StoreOptions
from worker.dedup.memory import MemoryStore
from worker.errors import ConfigurationError
from worker.found import find_generations
from worker.inspector import Inspector
from worker.resharding import Resharding, topology_of
from worker.sharding.generations import Generation, Plan
from worker.sharding.slots import slot_of, slot_routing_key

FRONT, MARKER, RELAY = "bank.g1", "bank.g1.slots.2", "bank.g1.relay"


class Step(Event, name="step", key="line"):
    """What the service observes."""

    line: str


@pytest.fixture
def settings(amqp_url: str, tmp_path: Path) -> Settings:
    return load_settings({"broker": amqp_url, "shards": 2}, {}, tmp_path)


@pytest.fixture
def app() -> App:
    app = App("bank")
    app.on(Step)(lambda event: None)
    return app


def declare(app: App, settings: Settings) -> None:
    Resharding(app, settings).declare(Plan(Generation(1, 2)))


def publish(key: str) -> Callable[[Any], None]:
    """Return what publishes a message of ``key`` as our publishers do."""
    message = amqp.Message(
        b"{}",
        message_id="1",
        type="step",
        delivery_mode=2,
        application_headers={"qw-key": key, "BCC": [slot_routing_key(slot_of(key))]},
    )
    return methodcaller("basic_publish", message, "qw.events", "step")


def test_a_front_that_was_removed_is_bound_anew(app: App, settings: Settings) -> None:
    declare(app, settings)
    with Inspector("bank", settings) as inspector:
        assert inspector.has_exchange(MARKER)
        declare(app, settings)
        inspector.ask(methodcaller("exchange_delete", FRONT))
        assert not inspector.has_exchange(MARKER), "it tells of bindings that went with the front"

        declare(app, settings)
        for number in range(20):
            inspector.ask(publish(f"key-{number}"))

        def depth(queue: str) -> int:
            found = inspector.depth(queue)
            return 0 if found is None else found.ready

        until(lambda: depth("bank.g1.0") + depth("bank.g1.1") == 20)
        assert depth("bank.g1.0") > 0
        assert depth("bank.g1.1") > 0
        assert depth(RELAY) == 0


def test_who_died_before_it_was_tied_to_the_front_left_that_to_the_next(
    app: App, settings: Settings
) -> None:
    declare(app, settings)
    with Inspector("bank", settings) as inspector:
        inspector.ask(methodcaller("exchange_delete", FRONT))
        inspector.ask(
            lambda channel: channel.exchange_declare(
                MARKER, "fanout", durable=True, auto_delete=True
            )
        )
        declare(app, settings)
        inspector.ask(methodcaller("exchange_delete", FRONT))
        assert not inspector.has_exchange(MARKER)


def test_a_queue_that_was_removed_meanwhile_is_bound_anew(app: App, settings: Settings) -> None:
    declare(app, settings)
    with Inspector("bank", settings) as inspector:
        inspector.ask(methodcaller("queue_delete", "bank.g1.1"))
        declare(app, settings)
        for number in range(20):
            inspector.ask(publish(f"key-{number}"))

        def depth(queue: str) -> int:
            found = inspector.depth(queue)
            return 0 if found is None else found.ready

        until(lambda: depth("bank.g1.0") + depth("bank.g1.1") == 20)
        assert depth(RELAY) == 0


def test_a_front_of_another_type_is_told_as_what_it_is(app: App, settings: Settings) -> None:
    with Inspector("bank", settings) as inspector:
        inspector.ask(
            lambda channel: channel.exchange_declare(
                FRONT, "direct", durable=True, auto_delete=False
            )
        )
        with pytest.raises(ConfigurationError, match=r"another type.* remove that exchange"):
            declare(app, settings)
        inspector.ask(
            lambda channel: channel.queue_declare(
                "bank.g1.0", durable=True, auto_delete=False, arguments={"x-queue-type": "quorum"}
            )
        )
        with pytest.raises(ConfigurationError, match=r"another type.* remove that exchange"):
            find_generations(inspector, partial(topology_of, app, settings), 2)


@pytest.mark.parametrize("exchange", [FRONT, "bank.g1.relay.2", "qw.events", MARKER])
def test_an_exchange_that_is_removed_from_a_running_service_is_declared_anew(
    app: App, settings: Settings, exchange: str
) -> None:
    consumer = Consumer(app, settings, shards=range(2), store=MemoryStore(StoreOptions()))
    with closing(consumer), Inspector("bank", settings) as inspector:
        consumer.open()

        def goes_on(condition: Callable[[], object]) -> Callable[[], object]:
            def look() -> object:
                consumer.statistics()  # asks what is there, once a second
                consumer.tick(0.01)
                return condition()

            return look

        inspector.ask(methodcaller("exchange_delete", exchange))
        until(goes_on(lambda: consumer.counters.reconnects == 1))
        until(goes_on(lambda: inspector.has_exchange(exchange)))
        inspector.ask(publish("a"))
        until(goes_on(lambda: consumer.counters.completed == 1))
        assert consumer.counters.relayed == 0
        until(goes_on(lambda: inspector.has_exchange(MARKER)))
