"""Topologies that are there already, on a real RabbitMQ: a service joins them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import amqp
import pytest

from integration.site import Running, Serve, Site
from worker.declaring import check_type
from worker.errors import ConfigurationError
from worker.topology import Exchange
from worker.transport.capabilities import connect


class Bound(NamedTuple):
    """A binding of an exchange, what it matches, and what not."""

    type: str
    binding: Mapping[str, Any]
    wanted: Mapping[str, Any]
    others: Mapping[str, Any] | None


#: Of RabbitMQ without plugins, as it is in tests.
KNOWN_TYPES = {"direct", "fanout", "topic", "headers"}
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


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        (
            {"type": "topik"},
            "does not know the type 'topik' of the exchange 'partner'; did you mean",
        ),
        ({"type": "x-delayed-message"}, "'x-delayed-message' of the exchange 'partner'; is its"),
        ({"type": "headers", "arguments": {"x-match": "some"}}, r"app\.bind\(exchange='partner'"),
        ({"type": "fanout", "to": "nowhere"}, "does not bind 'nowhere' to the exchange 'partner'"),
    ],
)
def test_what_the_broker_refuses_of_an_exchange_is_no_outage(
    site: Site, facts: dict[str, Any], says: str
) -> None:
    app = site.app(connect_timeout=60)
    app.bind(exchange="partner", **facts)
    with pytest.raises(ConfigurationError, match=says):
        Running(app)


@pytest.mark.parametrize("type_", ["topik", "x-consistent-hash", "headers"])
def test_whether_a_type_is_known_is_asked_without_declaring(site: Site, type_: str) -> None:
    """A plugin's may be there, or not."""
    exchange = Exchange("partner", type_)
    connection = connect(site.url, heartbeat=0, timeout=10, name="test")
    is_known = True
    try:
        check_type(connection.channel(), exchange)
    except ConfigurationError:
        is_known = False
    connection.release()

    assert is_known is (type_ in KNOWN_TYPES)
    with pytest.raises(amqp.NotFound):
        site.channel.exchange_declare("partner", "fanout", passive=True)


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
