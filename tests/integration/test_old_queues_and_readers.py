"""Old queues are not removed under somebody who still holds messages of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import amqp
import pytest

from waiting import until
from worker import App, Event
from worker.config import Settings, load_settings
from worker.inspector import Inspector
from worker.resharding import Resharding
from worker.sharding.generations import Generation, Phase, Plan
from worker.testing import FakeClock
from worker.transport.capabilities import connect
from worker.transport.inbound import release

PLAN = Plan(Generation(1, 1), Generation(2, 1), Phase.DECLARE)
OLD, NEW = "bank.g1.0", "bank.g2.0"
#: As long as it takes for two looks to count as two.
PAUSE = 10.0


class Step(Event, name="step", key="line"):
    """What the service observes."""

    line: str


@pytest.fixture(params=["quorum", "classic", "embedded"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    if request.param == "embedded":
        return load_settings({"broker": f"sqlite:///{tmp_path / 'broker.db'}"}, {}, tmp_path)
    url = request.getfixturevalue("amqp_url")
    return load_settings({"broker": url, "queue_type": request.param}, {}, tmp_path)


@pytest.fixture
def reader(settings: Settings) -> Iterator[Any]:
    """A connection of somebody who reads the old queue too."""
    connection = connect(settings.broker, heartbeat=0, timeout=5, name="reader")
    yield connection
    release(connection)


def read(connection: Any, queue: str) -> Any:
    """Take the message of a queue, end the consumer, and keep what was taken."""
    channel = connection.channel()
    taken: list[Any] = []
    channel.basic_consume(queue, callback=taken.append, consumer_tag="reader", no_ack=False)

    def has_it() -> bool:
        with suppress(TimeoutError):
            connection.drain_events(timeout=0.1)
        return bool(taken)

    until(has_it)
    channel.basic_cancel("reader")
    return channel


def test_what_a_reader_puts_back_is_moved(settings: Settings, reader: Any) -> None:
    app = App("bank")
    app.on(Step)(lambda event: None)
    clock = FakeClock()
    steps = Resharding(app, settings, clock=clock)
    steps.declare(PLAN)
    assert steps.take(PLAN)
    steps.declare(PLAN.advanced())
    remove = Plan(PLAN.current, PLAN.target, Phase.REMOVE)
    with Inspector("bank", settings) as inspector:

        def ready(queue: str) -> int | None:
            found = inspector.depth(queue)
            return None if found is None else found.ready

        message = amqp.Message(b"{}", message_id="1", type="step", delivery_mode=2)
        inspector.ask(lambda channel: channel.basic_publish(message, "", OLD))
        until(lambda: ready(OLD) == 1)
        channel = read(reader, OLD)
        assert ready(OLD) == 0

        assert not steps.take(remove)
        channel.close()
        until(lambda: ready(OLD) == 1)
        clock.advance(PAUSE)
        assert not steps.take(remove)
        until(lambda: ready(NEW) == 1)

        def removed() -> bool:
            clock.advance(PAUSE)
            return steps.take(remove)

        until(removed)
        assert (ready(OLD), ready(NEW)) == (None, 1)
