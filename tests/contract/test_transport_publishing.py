"""Publishing to the embedded broker, beyond what every transport does.

The rest is in ``worker.testing.transport_suite``, which test_transport_conformance.py runs.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import amqp
import pytest
from amqp import exceptions

from worker.transport.embedded.encoding import Unencodable

Connect = Callable[..., Any]


def message(body: bytes | str = b"", **properties: Any) -> amqp.Message:
    return amqp.Message(body, delivery_mode=2, **properties)


def declare(channel: Any, *names: str, **arguments: Any) -> None:
    for name in names:
        channel.queue_declare(name, durable=True, auto_delete=False, arguments=arguments)


def bodies(channel: Any, queue: str) -> list[bytes]:
    """Everything that waits in ``queue``, in order."""
    found = []
    while (got := channel.basic_get(queue, no_ack=True)) is not None:
        found.append(got.body)
    return found


def test_a_message_comes_back_as_it_was_sent(connect: Connect) -> None:
    channel = connect().channel()
    declare(channel, "q")
    headers = {
        "text": "ü",
        "bytes": b"\xff\x00",
        "decimal": Decimal("1.50"),
        "none": None,
        "big": 2**80,
        "date": datetime(2024, 5, 6, 7, 8, 9, 10, tzinfo=UTC),
        "nested": {"list": [1, {"a": True}]},
    }
    properties = {
        "content_type": "application/json",
        "application_headers": headers,
        "priority": 0,
        "correlation_id": "c",
        "message_id": "m",
        "timestamp": 1_700_000_000,
        "type": "user.deposited",
        "app_id": "bank",
    }
    body = bytes(range(256)) * 100
    channel.basic_publish(message(body, **properties), "", "q")
    got = channel.basic_get("q")
    assert type(got) is amqp.Message
    assert got.body == body
    assert got.properties == {**properties, "delivery_mode": 2}
    assert got.headers == headers
    assert got.channel is channel
    assert got.delivery_info == {
        "delivery_tag": 1,
        "redelivered": False,
        "exchange": "",
        "routing_key": "q",
        "message_count": 0,
    }


def test_text_is_sent_as_py_amqp_sends_it(connect: Connect) -> None:
    channel = connect().channel()
    declare(channel, "q")
    channel.basic_publish(message("ü"), "", "q")
    channel.basic_publish(message("ü", content_encoding="latin-1"), "", "q")
    channel.basic_publish(amqp.Message(), "", "q")
    first, second, third = (channel.basic_get("q") for _ in range(3))
    assert (first.body, first.content_encoding) == ("ü".encode(), "utf-8")
    assert (second.body, second.content_encoding) == (b"\xfc", "latin-1")
    assert third.body == b""


def test_an_exchange_may_route_by_headers(connect: Connect) -> None:
    channel = connect().channel()
    declare(channel, "q")
    channel.exchange_declare("headers", "headers", durable=True, auto_delete=False)
    channel.queue_bind("q", "headers", arguments={"x-match": "any", "kind": None})
    channel.basic_publish(message(b"1", application_headers={"kind": "k"}), "headers", "")
    channel.basic_publish(message(b"dropped", application_headers={"other": 1}), "headers", "")
    assert bodies(channel, "q") == [b"1"]


def test_a_mandatory_message_without_a_queue_is_an_error(connect: Connect) -> None:
    channel = connect().channel()
    channel.basic_publish(message(b"dropped"), "amq.topic", "nobody")
    with pytest.raises(exceptions.ChannelError) as caught:
        channel.basic_publish(message(b"x"), "amq.topic", "nobody", mandatory=True)
    assert caught.value.reply_code == 312
    assert isinstance(caught.value, channel.connection.client.channel_errors)


def test_a_missing_exchange_is_an_error(connect: Connect) -> None:
    channel = connect().channel()
    with pytest.raises(exceptions.NotFound):
        channel.basic_publish(message(b"x"), "no", "key")


def test_a_batch_that_fails_stores_nothing(connect: Connect) -> None:
    channel = connect().channel()
    declare(channel, "q")
    declare(channel, "tiny", **{"x-max-length": 0, "x-overflow": "reject-publish"})
    good = (message(b"good"), "", "q", True)
    for bad, error in (
        ((message(b"x", expiration="soon"), "", "q", True), exceptions.PreconditionFailed),
        ((message(b"x"), "", "tiny", True), exceptions.MessageNacked),
        ((message(b"x"), "", "k" * 256, True), Unencodable),
        ((message(b"x", application_headers={"a": object()}), "", "q", True), Unencodable),
    ):
        with pytest.raises(error) as caught:
            channel.publish_many([good, bad, good])
        if isinstance(caught.value, Unencodable):
            assert caught.value.index == 1
    assert bodies(channel, "q") == []


def test_what_cannot_be_carried_looks_like_no_lost_connection(connect: Connect) -> None:
    connection = connect()
    channel = connection.channel()
    with pytest.raises(Unencodable) as caught:
        channel.basic_publish(message(b"x", message_id="m" * 256), "", "q")
    assert not isinstance(
        caught.value, (*connection.connection_errors, *connection.channel_errors, OSError)
    )


def test_immediate_is_refused(connect: Connect) -> None:
    with pytest.raises(exceptions.AMQPNotImplementedError):
        connect().channel().basic_publish(message(b"x"), "", "q", immediate=True)


def test_a_queue_s_length_drops_the_head(connect: Connect) -> None:
    channel = connect().channel()
    declare(channel, "q", **{"x-max-length": 3})
    for number in range(5):
        channel.basic_publish(message(str(number).encode()), "", "q")
    assert channel.queue_declare("q", passive=True).message_count == 3
    batch = [(message(str(number).encode()), "", "q", True) for number in range(5, 12)]
    assert channel.publish_many(batch) == []
    assert bodies(channel, "q") == [b"9", b"10", b"11"]


def test_a_queue_s_length_may_refuse(connect: Connect) -> None:
    connection = connect()
    channel = connection.channel()
    declare(channel, "q", **{"x-max-length": 1, "x-overflow": "reject-publish"})
    channel.basic_publish(message(b"1"), "", "q")
    with pytest.raises(exceptions.MessageNacked) as caught:
        channel.basic_publish(message(b"2"), "", "q")
    assert isinstance(caught.value, connection.recoverable_connection_errors)
    assert bodies(channel, "q") == [b"1"]


def test_leased_messages_do_not_count_for_the_length(connect: Connect) -> None:
    channel = connect().channel()
    declare(channel, "q", **{"x-max-length": 1, "x-overflow": "reject-publish"})
    channel.basic_publish(message(b"1"), "", "q")
    assert channel.basic_get("q").body == b"1"
    channel.basic_publish(message(b"2"), "", "q")


def test_kombu_s_raw_surface(connect: Connect) -> None:
    channel = connect().channel()
    prepared = channel.prepare_message(
        "body", 3, "text/plain", "utf-8", {"h": 1}, {"message_id": "m", "delivery_mode": 2}
    )
    assert type(prepared) is amqp.Message
    declare(channel, "q")
    channel.basic_publish(prepared, exchange="", routing_key="q", timeout=1, confirm_timeout=1)
    python = channel.message_to_python(channel.basic_get("q"))
    assert (python.body, python.headers, python.content_type) == (b"body", {"h": 1}, "text/plain")
    assert python.properties["message_id"] == "m"
    assert python.payload == "body"
    python.ack()
    arguments = channel.prepare_queue_arguments({"x": 1}, message_ttl=1.5, max_length=3)
    assert arguments == {"x": 1, "x-message-ttl": 1500, "x-max-length": 3}
