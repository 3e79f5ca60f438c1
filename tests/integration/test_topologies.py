"""Topologies that are there already, on a real RabbitMQ: a service joins them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import uuid4

import amqp
import orjson
import pytest

from waiting import until
from worker import App
from worker.config import Settings
from worker.consumer import Consumer
from worker.ending import Finish
from worker.errors import ConfigurationError
from worker.transport.capabilities import connect

PATIENCE = 60.0


class Site:
    """A broker with whatever a test declares, publishers, and a service beside them."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._connection = connect(url, heartbeat=0, timeout=10, name="site")
        self.channel: Any = self._connection.channel()
        self.channel.confirm_select()
        self.seen: list[tuple[str, int]] = []
        self._dedup = f"memory://{uuid4()}"

    def close(self) -> None:
        self._connection.release()

    def publish(self, exchange: str, routing_key: str = "", *numbers: int, **facts: Any) -> None:
        """Publish events of two keys in turn, as a plain client does."""
        headers = facts.pop("headers", {})
        for n in numbers:
            key = facts.get("key", f"key-{n % 2}")
            message = amqp.Message(
                orjson.dumps({"n": n}),
                message_id=f"{facts.get('id', 'id')}-{n}",
                type=facts.get("type", "test.event"),
                delivery_mode=2,
                content_type="application/json",
                application_headers={"qw-key": key, **headers},
                **({"priority": facts["priority"]} if "priority" in facts else {}),
            )
            self.channel.basic_publish(message, exchange, routing_key)
            self.channel.wait(amqp.spec.Basic.Ack)

    def app(self, **settings: Any) -> App:
        """Return a service that notes what it is told."""
        app = App("joins", broker=self.url, dedup=self._dedup, settings=settings)

        @app.on("test.*", name="note")
        def note(event: dict[str, int], context: Any) -> None:
            self.seen.append((context.key, event["n"]))

        return app

    @property
    def numbers(self) -> list[int]:
        return [n for _, n in self.seen]


@pytest.fixture
def site(amqp_url: str) -> Iterator[Site]:
    site = Site(amqp_url)
    yield site
    site.close()


class Running:
    """A consumer of an app, ticked by the test's own thread."""

    def __init__(self, app: App, **options: Any) -> None:
        self.settings: Settings = app.configure({"shards": 1, **options})
        self.consumer = Consumer(app, self.settings, shards=range(self.settings.shards))
        self.consumer.open()

    def until(self, condition: Callable[[], object], told: str) -> None:
        def ticked() -> object:
            self.consumer.tick(0.01)
            return condition()

        until(ticked, PATIENCE, told)

    def drain(self) -> None:
        self.consumer.drain(time.monotonic() + 30)
        assert self.consumer.run() is Finish.DRAINED

    def kill(self) -> None:
        """End it without a word: nothing more is acknowledged, recorded or remembered."""
        self.consumer._link._inbound.abandon()  # type: ignore[union-attr]  # it is open
        self.consumer._link._inbound = None
        self.consumer.close()


@pytest.fixture
def serve() -> Iterator[Callable[..., Running]]:
    started: list[Running] = []

    def start(app: App, **options: Any) -> Running:
        started.append(Running(app, **options))
        return started[-1]

    yield start
    for each in started:
        if each.consumer.ended is None and each.consumer._link.is_up:
            each.consumer.close()


Serve = Callable[..., Running]


# Exchanges


class Bound(NamedTuple):
    """A binding of an exchange, what it matches, and what not."""

    type: str
    binding: Mapping[str, Any]
    wanted: Mapping[str, Any]
    others: Mapping[str, Any] | None


BOUND = [
    Bound("direct", {"routing_key": "order"}, {"routing_key": "order"}, {"routing_key": "other"}),
    Bound("topic", {"routing_key": "o.*"}, {"routing_key": "o.new"}, {"routing_key": "p.new"}),
    Bound("fanout", {}, {}, None),
    Bound(
        "headers",
        {"arguments": {"x-match": "all", "kind": "order", "size": 3}},
        {"headers": {"kind": "order", "size": 3}},
        {"headers": {"kind": "order", "size": 4}},
    ),
]


@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize("bound", BOUND, ids=[bound.type for bound in BOUND])
def test_an_exchange_of_every_type_is_a_source_of_messages(
    site: Site, serve: Serve, bound: Bound, shards: int
) -> None:
    site.channel.exchange_declare("partner", bound.type, durable=True, auto_delete=False)
    app = site.app()
    app.bind(exchange="partner", type=bound.type, **bound.binding)
    running = serve(app, shards=shards)

    for facts, numbers in ((bound.others, (90, 91)), (bound.wanted, range(6))):
        if facts is not None:
            given = {"routing_key": "", **facts}
            site.publish("partner", given.pop("routing_key"), *numbers, **given)

    running.until(lambda: len(site.seen) == 6, "all is handled")
    assert [n for key, n in site.seen if key == "key-0"] == [0, 2, 4]
    assert [n for key, n in site.seen if key == "key-1"] == [1, 3, 5]
    running.drain()


def test_an_exchange_is_bound_to_another_one(site: Site, serve: Serve) -> None:
    site.channel.exchange_declare("partner", "topic", durable=True, auto_delete=False)
    app = site.app()
    app.bind(exchange="partner", type="topic", routing_key="order.#", to="collected")
    app.bind(exchange="collected", type="direct", routing_key="order.new")
    running = serve(app)

    site.publish("partner", "order.new", 1)
    site.publish("partner", "order.old", 2)
    site.publish("partner", "bill.new", 3)
    site.publish("collected", "order.new", 4)

    running.until(lambda: len(site.seen) == 2, "all is handled")
    assert sorted(site.numbers) == [1, 4]
    running.drain()


def test_an_exchange_of_somebody_else_is_bound_and_not_declared(site: Site, serve: Serve) -> None:
    site.channel.exchange_declare("rest", "fanout", durable=True, auto_delete=False)
    site.channel.exchange_declare(
        "partner",
        "direct",
        durable=False,
        auto_delete=False,
        arguments={"alternate-exchange": "rest"},
    )
    app = site.app()
    app.bind(exchange="partner", routing_key="order", declare=False)
    running = serve(app)

    site.publish("partner", "order", 1)

    running.until(lambda: site.numbers == [1], "it is handled")
    running.drain()


def test_an_exchange_of_somebody_else_that_is_not_there_is_told(site: Site) -> None:
    app = site.app(connect_timeout=0.5)
    app.bind(exchange="partner", declare=False)
    with pytest.raises(ConfigurationError, match="'partner', which is bound with declare=False"):
        Running(app)


def test_an_exchange_of_somebody_else_that_is_removed_is_told_and_all_else_goes_on(
    site: Site, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    def declare() -> None:
        site.channel.exchange_declare("partner", "fanout", durable=True, auto_delete=False)

    def told(text: str) -> bool:
        return any(text in record.getMessage() for record in caplog.records)

    caplog.set_level("INFO", "worker")
    declare()
    app = site.app()
    app.bind(exchange="partner", type="fanout", declare=False)
    running = serve(app)
    counters = running.consumer.counters

    site.channel.exchange_delete("partner")
    running.until(lambda: told("'partner', which is bound with declare=False"), "it is told")
    site.publish("qw.events", "test.event", 1)
    running.until(lambda: site.numbers == [1], "all else goes on")
    running.consumer.statistics()  # asks what is there of its own
    assert counters.reconnects == 0

    running.consumer._link.renew("as after a loss")
    running.until(lambda: counters.reconnects == 1 and running.consumer._link.is_up, "it is up")
    site.publish("qw.events", "test.event", 2)
    running.until(lambda: site.numbers == [1, 2], "it is there without it")

    declare()
    running.until(lambda: told("the exchange 'partner' is there, and bound"), "it is bound")
    site.publish("partner", "", 3)
    running.until(lambda: site.numbers == [1, 2, 3], "it is handled")
    running.drain()


def test_an_exchange_is_declared_as_the_app_says(site: Site, serve: Serve) -> None:
    app = site.app()
    app.bind(
        exchange="partner",
        type="direct",
        routing_key="order",
        durable=False,
        auto_delete=True,
        exchange_arguments={"alternate-exchange": "rest"},
    )
    running = serve(app)

    site.channel.exchange_declare(  # refused, if it were another one
        "partner",
        "direct",
        durable=False,
        auto_delete=True,
        arguments={"alternate-exchange": "rest"},
    )
    site.publish("partner", "order", 1)
    running.until(lambda: site.numbers == [1], "it is handled")
    running.drain()


# Queues


QUEUES: Sequence[tuple[str, Mapping[str, Any]]] = [
    ("durable", {"durable": True}),
    ("transient", {"durable": False}),
    ("quorum", {"durable": True, "arguments": {"x-queue-type": "quorum"}}),
    ("limited", {"durable": True, "arguments": {"x-max-priority": 5, "x-message-ttl": 60000}}),
]


@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize(("name", "facts"), QUEUES, ids=[name for name, _ in QUEUES])
def test_a_queue_that_is_there_is_taken_over_in_order(
    site: Site, serve: Serve, name: str, facts: Mapping[str, Any], shards: int
) -> None:
    site.channel.queue_declare(name, exclusive=False, auto_delete=False, **facts)
    site.publish("", name, *range(20))
    app = site.app()
    app.source(name)
    running = serve(app, shards=shards)

    site.publish("", name, *range(20, 30))

    running.until(lambda: len(site.seen) == 30, "all is handled")
    for key in (0, 1):
        assert [n for k, n in site.seen if k == f"key-{key}"] == [*range(key, 30, 2)]
    running.until(lambda: depth(site, name) == 0, "nothing is left")
    running.drain()
    assert depth(site, name) == 0


def depth(site: Site, queue: str) -> int:
    return int(site.channel.queue_declare(queue, passive=True).message_count)


@pytest.mark.parametrize("declare", ["durable", "transient", "exclusive"])
def test_a_queue_is_declared_and_bound_as_the_app_says(
    site: Site, serve: Serve, declare: Any
) -> None:
    site.channel.exchange_declare("partner", "topic", durable=True, auto_delete=False)
    app = site.app()
    app.source("mine", declare=declare, exchange="partner", routing_key="order.*")
    running = serve(app)
    running.until(lambda: running.consumer._link.channels[-1].queue == "mine", "it is consumed")

    site.publish("partner", "order.new", 1, 2)
    site.publish("partner", "bill.new", 3)

    running.until(lambda: len(site.seen) == 2, "all is handled")
    running.drain()
    with site._connection.channel() as channel:
        if declare == "exclusive":
            with pytest.raises(amqp.exceptions.NotFound):
                channel.queue_declare("mine", passive=True)
        else:
            channel.queue_declare("mine", passive=True)


def test_a_source_that_is_not_there_is_told_and_taken_as_soon_as_it_is(
    site: Site, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    app = site.app()
    app.source("late")
    running = serve(app)
    running.until(lambda: "the source 'late' is not consumed until" in caplog.text, "it is told")
    site.publish("qw.events", "test.event", 1)
    running.until(lambda: site.numbers == [1], "all else goes on")

    site.channel.queue_declare("late", durable=True, auto_delete=False)
    site.publish("", "late", 2)
    running.until(lambda: sorted(site.numbers) == [1, 2], "it is consumed")
    running.drain()


def test_a_source_that_is_removed_is_told_and_all_else_goes_on(site: Site, serve: Serve) -> None:
    site.channel.queue_declare("short", durable=True, auto_delete=False)
    app = site.app()
    app.source("short")
    running = serve(app)
    site.publish("", "short", 1)
    running.until(lambda: site.numbers == [1], "it is consumed")

    site.channel.queue_delete("short")
    site.publish("qw.events", "test.event", 2)
    running.until(lambda: sorted(site.numbers) == [1, 2], "all else goes on")
    running.drain()


def test_one_process_at_a_time_takes_from_a_queue(site: Site, serve: Serve) -> None:
    site.channel.queue_declare("theirs", durable=True, auto_delete=False)
    app = site.app()
    app.source("theirs")
    first = serve(app, shards=2)
    second = serve(app, shards=2)
    site.publish("", "theirs", 1)
    first.until(lambda: site.numbers == [1], "the first one takes it")
    for _ in range(5):
        second.consumer.tick(0.01)

    first.drain()
    site.publish("", "theirs", 2)
    second.until(lambda: sorted(site.numbers) == [1, 2], "the next one takes it")
    second.drain()


# Priorities


def test_what_has_a_higher_priority_is_handled_first(site: Site, serve: Serve) -> None:
    options = {"queue_type": "classic", "max_priority": 9, "concurrency": 1, "prefetch": 1}
    app = site.app()
    serve(app, **options).drain()  # it has declared its queues
    for priority in (1, 5, 9, 0):
        site.publish("qw.events", "test.event", priority, priority=priority)
    running = serve(app, **options)
    running.until(lambda: len(site.seen) == 4, "all is handled")
    assert site.numbers == [9, 5, 1, 0]
    running.drain()


# Streams


def make_stream(site: Site, *numbers: int) -> None:
    arguments = {"x-queue-type": "stream"}
    site.channel.queue_declare("log", durable=True, auto_delete=False, arguments=arguments)
    site.publish("", "log", *numbers)


@pytest.mark.parametrize("shards", [1, 4])
def test_a_stream_is_read_from_its_first_message_in_order(
    site: Site, serve: Serve, shards: int
) -> None:
    make_stream(site, *range(40))
    app = site.app()
    app.source("log", offset="first")
    running = serve(app, shards=shards)
    site.publish("", "log", *range(40, 50))
    running.until(lambda: len(site.seen) == 50, "all is handled")
    for key in (0, 1):
        assert [n for k, n in site.seen if k == f"key-{key}"] == [*range(key, 50, 2)]
    running.drain()


@pytest.mark.parametrize(
    ("offset", "first"), [("first", 0), (7, 7), ("next", 20), ("last", None), ("1h", 0)]
)
def test_a_stream_is_read_from_where_the_app_says(
    site: Site, serve: Serve, offset: Any, first: int | None
) -> None:
    make_stream(site, *range(20))
    app = site.app()
    app.source("log", offset=offset)
    running = serve(app)
    running.until(lambda: len(running.consumer._link.channels) == 2, "it is consumed")
    site.publish("", "log", 20)
    running.until(lambda: 20 in site.numbers, "all is handled")
    if first is None:  # the last chunk has one message or some
        assert sorted(site.numbers) == [*range(min(site.numbers), 21)]
    else:
        assert sorted(site.numbers) == [*range(first, 21)]
    running.drain()


def test_a_stream_is_read_from_a_time(site: Site, serve: Serve) -> None:
    make_stream(site, 1, 2)
    time.sleep(2.1)  # the broker's own times have seconds
    moment = datetime.now(UTC)
    site.publish("", "log", 3, 4)
    app = site.app()
    app.source("log", offset=moment)
    running = serve(app)
    running.until(lambda: 4 in site.numbers, "all is handled")
    assert sorted(site.numbers) == [3, 4]
    running.drain()


def test_a_restart_goes_on_where_the_stream_was_left(site: Site, serve: Serve) -> None:
    make_stream(site, *range(10))
    app = site.app()
    app.source("log", offset="first")
    first = serve(app)
    first.until(lambda: len(site.seen) == 10, "all is handled")
    first.drain()

    site.publish("", "log", *range(10, 15))
    second = serve(app)
    second.until(lambda: len(site.seen) == 15, "what came meanwhile is handled")
    assert second.consumer.counters.relayed == 5
    second.drain()
    assert sorted(site.numbers) == [*range(15)]


def test_a_crash_passes_on_again_what_was_not_remembered_and_nothing_runs_twice(
    site: Site, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_stream(site, *range(10))
    app = site.app()
    app.source("log", offset="first")
    first = serve(app)
    monkeypatch.setattr("worker.sourcing.Sourcing.save", lambda _: None)
    first.until(lambda: len(site.seen) == 10, "all is handled")
    first.until(lambda: first.consumer._dialogue.busy is False, "all is recorded")
    first.kill()
    monkeypatch.undo()

    site.publish("", "log", 10)
    second = serve(app)
    second.until(lambda: second.consumer.counters.duplicates == 10, "it is dropped")
    second.until(lambda: len(site.seen) == 11, "what came meanwhile is handled")
    assert sorted(site.numbers) == [*range(11)]
    second.drain()


def test_another_name_reads_the_stream_again_for_those_who_have_not_seen_it(
    site: Site, serve: Serve
) -> None:
    make_stream(site, *range(5))
    app = site.app()
    app.source("log", offset="first")
    running = serve(app)
    running.until(lambda: len(site.seen) == 5, "all is handled")
    running.drain()

    again = site.app()
    again.source("log", offset="first", name="log again")
    late: list[int] = []
    again.on("test.*", name="late")(lambda event: late.append(event["n"]))
    running = serve(again)
    running.until(lambda: len(late) == 5, "the new handler has seen all")
    assert sorted(late) == [*range(5)]
    assert sorted(site.numbers) == [*range(5)]
    running.drain()


def test_what_nobody_observes_stays_in_the_stream_and_becomes_no_dead_letter(
    site: Site, serve: Serve
) -> None:
    make_stream(site)
    site.publish("", "log", 1, type="bill.new", id="bill")
    site.publish("", "log", 2)
    app = site.app()
    app.source("log", offset="first")
    running = serve(app)
    running.until(lambda: site.numbers == [2], "all is handled")
    running.drain()
    assert depth(site, "joins.dlq") == 0


def test_what_cannot_be_read_is_a_dead_letter_that_does_not_go_back_to_the_stream(
    site: Site, serve: Serve
) -> None:
    make_stream(site)
    site.channel.basic_publish(amqp.Message(b"{}", type="test.event"), "", "log")
    site.channel.wait(amqp.spec.Basic.Ack)
    app = site.app()
    app.source("log", offset="first")
    running = serve(app)
    running.until(lambda: depth(site, "joins.dlq") == 1, "it is set aside")
    letter = site.channel.basic_get("joins.dlq", no_ack=True)
    assert letter.headers["qw-dead-queue"] == "joins.g1.0"
    running.drain()


def test_a_stream_is_declared_and_bound_as_the_app_says(site: Site, serve: Serve) -> None:
    site.channel.exchange_declare("partner", "fanout", durable=True, auto_delete=False)
    app = site.app()
    app.source("log", offset="first", declare="stream", exchange="partner")
    running = serve(app)
    running.until(lambda: len(running.consumer._link.channels) == 2, "it is consumed")
    site.publish("partner", "", 1, 2)
    running.until(lambda: sorted(site.numbers) == [1, 2], "all is handled")
    running.drain()


def test_a_burst_ends_when_the_stream_was_read(site: Site) -> None:
    make_stream(site, *range(10))
    app = site.app()
    app.source("log", offset="first")
    running = Running(app, burst=True)
    running.until(running.consumer.is_idle, "it has nothing left to do")
    assert sorted(site.numbers) == [*range(10)]
    running.drain()
