"""Expiry, rejection and dead letters of the embedded broker, beyond what every transport does.

The rest is in ``worker.testing.transport_suite``, which test_transport_conformance.py runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import amqp
import pytest

from waiting import until

Connect = Callable[..., Any]


def declare(channel: Any, name: str, **arguments: Any) -> None:
    channel.queue_declare(name, durable=True, auto_delete=False, arguments=arguments)


def publish(channel: Any, queue: str, body: bytes, **properties: Any) -> None:
    message = amqp.Message(body, delivery_mode=2, **properties)
    channel.basic_publish(message, "", queue, mandatory=True)


def consume(connection: Any, queue: str) -> list[amqp.Message]:
    """Start a consumer; return the list that its messages will be in."""
    given: list[amqp.Message] = []
    connection.channel().basic_consume(queue, callback=given.append)
    return given


def eventually(connection: Any, condition: Callable[[], object]) -> None:
    """Drain the connection until the condition holds."""

    def drained() -> object:
        with suppress(TimeoutError):
            connection.drain_events(timeout=0.005)
        return condition()

    until(drained)


def is_as_long(given: list[amqp.Message], length: int) -> bool:
    return len(given) == length


def count(channel: Any, queue: str) -> int:
    found: int = channel.queue_declare(queue, passive=True).message_count
    return found


TO_DLQ = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dlq"}


def test_expiry_is_prompt_while_any_consumer_lives(connect: Connect) -> None:
    watcher, publisher = connect(), connect().channel()
    declare(publisher, "other")
    declare(publisher, "dlq")
    declare(publisher, "wait", **TO_DLQ)
    consume(watcher, "other")
    publish(publisher, "wait", b"x", expiration="60")
    due = time.monotonic() + 0.06
    rows = publisher.connection.broker.database.rows

    arrived = (
        "SELECT 1 FROM broker_queues JOIN broker_depths ON queue = id"
        " WHERE name = 'dlq' AND ready = 1"
    )
    eventually(watcher, lambda: rows(arrived))
    assert time.monotonic() - due < 1, "within milliseconds, on a machine that is not busy"


def test_the_shorter_of_two_lives_counts(connect: Connect) -> None:
    channel = connect().channel()
    declare(channel, "brief", **{"x-message-ttl": 30})
    declare(channel, "long", **{"x-message-ttl": 60_000})
    publish(channel, "brief", b"x", expiration="60000")
    publish(channel, "long", b"x", expiration="30")
    until(lambda: count(channel, "brief") == count(channel, "long") == 0)


def test_expired_messages_are_given_to_nobody(connect: Connect) -> None:
    connection = connect()
    channel = connection.channel()
    declare(channel, "q")
    publish(channel, "q", b"dead on arrival", expiration="0")
    publish(channel, "q", b"alive")
    given = consume(connection, "q")
    eventually(connection, lambda: given)
    assert [m.body for m in given] == [b"alive"]


def test_a_held_message_does_not_expire_before_it_is_given_back(connect: Connect) -> None:
    connection = connect()
    channel = connection.channel()
    declare(channel, "dlq")
    declare(channel, "q", **TO_DLQ)
    publish(channel, "q", b"x", expiration="40")
    held = channel.basic_get("q")
    later = time.monotonic() + 0.1
    eventually(connection, lambda: time.monotonic() > later)
    assert count(channel, "dlq") == 0
    channel.basic_reject(held.delivery_tag, requeue=True)
    assert channel.basic_get("q") is None
    (death,) = channel.basic_get("dlq").headers["x-death"]
    assert death["original-expiration"] == "40"


def test_rejected_messages_go_to_the_dead_letter_exchange(connect: Connect) -> None:
    channel = connect().channel()
    channel.exchange_declare("dlx", "direct", durable=True, auto_delete=False)
    declare(channel, "dead")
    channel.queue_bind("dead", "dlx", "work")
    declare(channel, "work", **{"x-dead-letter-exchange": "dlx"})
    declare(channel, "plain")
    publish(channel, "work", b"x", expiration="60000")
    publish(channel, "plain", b"y")
    channel.basic_reject(channel.basic_get("work").delivery_tag, requeue=False)
    channel.basic_reject(channel.basic_get("plain").delivery_tag, requeue=False)
    dead = channel.basic_get("dead")
    assert dead.delivery_info["exchange"] == "dlx"
    assert dead.delivery_info["routing_key"] == "work", "the original one is kept"
    assert "expiration" not in dead.properties, "it must not expire again"
    assert dead.headers["x-death"][0]["reason"] == "rejected"
    assert count(channel, "work") == count(channel, "plain") == 0


def test_what_falls_out_of_a_full_queue_is_a_dead_letter_in_order(connect: Connect) -> None:
    channel = connect().channel()
    declare(channel, "dlq")
    declare(channel, "q", **{"x-max-length": 2}, **TO_DLQ)
    batch = [(amqp.Message(str(n).encode(), delivery_mode=2), "", "q", True) for n in range(5)]
    channel.publish_many(batch)
    dead = [channel.basic_get("dlq") for _ in range(3)]
    assert [m.body for m in dead] == [b"0", b"1", b"2"]
    assert dead[0].headers["x-death"][0]["reason"] == "maxlen"
    assert channel.basic_get("q").body == b"3"


def test_dead_letters_go_on_where_the_next_queue_is_full_too(connect: Connect) -> None:
    channel = connect().channel()
    declare(channel, "last")
    declare(
        channel,
        "middle",
        **{"x-max-length": 1, "x-dead-letter-exchange": "", "x-dead-letter-routing-key": "last"},
    )
    declare(
        channel,
        "first",
        **{"x-max-length": 1, "x-dead-letter-exchange": "", "x-dead-letter-routing-key": "middle"},
    )
    for number in range(4):
        publish(channel, "first", str(number).encode())
    assert [channel.basic_get(q).body for q in ("first", "middle")] == [b"3", b"2"]
    assert [channel.basic_get("last").body for _ in range(2)] == [b"0", b"1"]


def test_dead_letters_are_kept_even_where_a_full_queue_refuses(connect: Connect) -> None:
    channel = connect().channel()
    declare(channel, "dlq", **{"x-max-length": 0, "x-overflow": "reject-publish"})
    declare(channel, "q", **TO_DLQ)
    publish(channel, "q", b"x")
    channel.basic_reject(channel.basic_get("q").delivery_tag, requeue=False)
    assert channel.basic_get("dlq").body == b"x"


def test_a_retry_goes_round_as_long_as_it_is_rejected(connect: Connect) -> None:
    connection = connect()
    channel = connection.channel()
    declare(channel, "work", **{"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "wait"})
    declare(
        channel,
        "wait",
        **{"x-message-ttl": 5, "x-dead-letter-exchange": "", "x-dead-letter-routing-key": "work"},
    )
    given: list[amqp.Message] = []
    channel.basic_consume("work", callback=given.append)
    publish(channel, "work", b"x")
    for attempt in range(1, 4):
        eventually(connection, partial(is_as_long, given, attempt))
        channel.basic_reject(given[-1].delivery_tag, requeue=False)
    eventually(connection, lambda: len(given) == 4)
    deaths = {d["queue"]: d["count"] for d in given[-1].headers["x-death"]}
    assert deaths == {"wait": 3, "work": 3}


def test_a_circle_without_a_rejection_ends(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    connection = connect()
    channel = connection.channel()
    for here, there in (("a", "b"), ("b", "a")):
        declare(
            channel,
            here,
            **{
                "x-message-ttl": 5,
                "x-dead-letter-exchange": "",
                "x-dead-letter-routing-key": there,
            },
        )
    publish(channel, "a", b"x")
    eventually(connection, lambda: "is lost" in caplog.text)
    assert count(channel, "a") == count(channel, "b") == 0


def test_a_missing_dead_letter_exchange_loses_them_aloud(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    channel = connect().channel()
    declare(channel, "q", **{"x-dead-letter-exchange": "gone"})
    publish(channel, "q", b"x")
    channel.basic_reject(channel.basic_get("q").delivery_tag, requeue=False)
    assert "'gone' takes it nowhere" in caplog.text


def test_many_messages_expire_in_order(connect: Connect) -> None:
    connection = connect()
    channel = connection.channel()
    declare(channel, "dlq")
    declare(channel, "wait", **{"x-message-ttl": 1}, **TO_DLQ)
    dead = consume(connection, "dlq")
    for start in range(0, 1200, 300):
        channel.publish_many(
            [
                (amqp.Message(str(n).encode(), delivery_mode=2), "", "wait", True)
                for n in range(start, start + 300)
            ]
        )
    eventually(connection, lambda: len(dead) == 1200)
    assert [int(m.body) for m in dead] == list(range(1200))
