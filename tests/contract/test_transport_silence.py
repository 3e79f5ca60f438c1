"""A RabbitMQ that says nothing any more holds up a caller no longer than for two heartbeats."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from time import monotonic

import amqp
import pytest

from chaos.faults.rabbitmq import close_connections
from servers import RabbitMQ
from waiting import until
from worker.errors import BrokerUnreachable
from worker.transport.capabilities import connect
from worker.transport.inbound import Inbound, abandon, losses

#: Far more than two heartbeats, far less than for ever.
LONG = 20.0


@pytest.fixture(params=["plain", "tls"])
def inbound(request: pytest.FixtureRequest, rabbitmq: RabbitMQ, amqp_url: str) -> Iterator[Inbound]:
    """A consuming connection."""
    url = amqp_url
    if request.param == "tls":
        url = f"{rabbitmq.over_tls(url)}?ssl_ca_certs={rabbitmq.certificates.authority}"
    connection = connect(url, heartbeat=1, timeout=5, name="test")
    connection.channel().queue_declare("box", durable=True, auto_delete=False)
    yield Inbound(connection, url, prefetch=10)
    abandon(connection, Inbound(connection, url, 1).able)


@pytest.mark.parametrize(
    "call",
    [
        lambda inbound: inbound.ask(lambda channel: channel.queue_declare("box", passive=True)),
        lambda inbound: inbound.ask_depths(["box"]),
        lambda inbound: inbound.consume({0: "box"}),
    ],
    ids=["ask", "survey", "consume"],
)
def test_a_call_is_given_up(
    rabbitmq: RabbitMQ, inbound: Inbound, call: Callable[[Inbound], object]
) -> None:
    began = monotonic()
    with rabbitmq.standing_still():
        with pytest.raises((BrokerUnreachable, TimeoutError)):
            call(inbound)
        inbound.abandon()
        assert monotonic() - began < LONG


def test_what_is_written_is_given_up(rabbitmq: RabbitMQ, amqp_url: str) -> None:
    connection = connect(amqp_url, heartbeat=1, timeout=5, name="test")
    channel = connection.channel()
    message = amqp.Message(b"x" * 50_000_000)  # no socket buffer takes that
    began = monotonic()
    with rabbitmq.standing_still():
        with pytest.raises(losses(connection)):
            channel.basic_publish(message, "", "box")
        abandon(connection, Inbound(connection, amqp_url, 1).able)
        assert monotonic() - began < LONG


def test_a_connection_that_the_broker_closed_is_let_go_without_another(
    rabbitmq: RabbitMQ, inbound: Inbound, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[amqp.Connection] = []

    def connect_anew(self: amqp.Connection) -> None:
        opened.append(self)

    monkeypatch.setattr(amqp.Connection, "connect", connect_anew)
    inbound.consume({0: "box"})
    close_connections(rabbitmq)
    with pytest.raises(BrokerUnreachable):
        until(lambda: inbound.fetch(1), message="it is told")

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")  # as an error it would be one more that abandon survives
        inbound.abandon()

    assert opened == []
    assert told == []
