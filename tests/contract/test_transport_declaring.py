"""Declaring on the embedded broker, beyond what every transport does.

The rest is in ``worker.testing.transport_suite``, which test_transport_conformance.py runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import amqp
import pytest
from amqp import exceptions

from waiting import until

Connect = Callable[..., Any]


def durable(channel: Any, name: str, **arguments: Any) -> None:
    channel.queue_declare(name, durable=True, auto_delete=False, arguments=arguments)


def exists(channel: Any, name: str) -> bool:
    try:
        channel.queue_declare(name, passive=True)
    except exceptions.NotFound:
        return False
    return True


def exchange_exists(channel: Any, name: str) -> bool:
    try:
        channel.exchange_declare(name, "direct", passive=True)
    except exceptions.NotFound:
        return False
    return True


def test_a_queue_without_a_name_gets_one_and_is_the_current_one(connect: Connect) -> None:
    channel = connect().channel()
    channel.exchange_declare("ex", "fanout")
    name = channel.queue_declare("").queue
    assert name.startswith("amq.gen-")
    channel.queue_bind("", "ex")
    channel.basic_publish(amqp.Message(b"1"), "ex", "")
    assert channel.queue_purge("") == 1
    assert channel.queue_declare("").queue != name


def test_a_queue_that_is_not_there(connect: Connect) -> None:
    channel = connect().channel()
    calls: list[Callable[[], object]] = [
        lambda: channel.queue_purge("q"),
        lambda: channel.basic_get("q"),
        lambda: channel.exchange_bind("amq.direct", "no"),
    ]
    for call in calls:
        with pytest.raises(exceptions.NotFound) as caught:
            call()
        assert caught.value.code == 404
    channel.queue_unbind("q", "amq.direct", "x")


@pytest.mark.parametrize(
    "other",
    [
        {"durable": False},
        {"auto_delete": True},
    ],
)
def test_a_queue_cannot_be_declared_otherwise(connect: Connect, other: dict[str, Any]) -> None:
    channel = connect().channel()
    as_it_is = {"durable": True, "auto_delete": False, "arguments": {"x-max-priority": 5}}
    channel.queue_declare("q", **as_it_is)
    with pytest.raises(exceptions.PreconditionFailed, match="inequivalent arg") as caught:
        connect().channel().queue_declare("q", **as_it_is | other)
    assert caught.value.code == 406
    assert exists(channel, "q"), "the channel stays open"


@pytest.mark.parametrize(
    "arguments",
    [
        {"x-message-ttl": -1},
        {"x-message-ttl": "1000"},
        {"x-expires": 0},
        {"x-max-length": True},
        {"x-max-priority": 256},
        {"x-dead-letter-exchange": 7},
        {"x-dead-letter-routing-key": "k"},
        {"x-overflow": "reject-publish-dlx"},
        {"x-max-length-bytes": 1000},
        {"x-queue-type": "stream"},
    ],
)
def test_arguments_that_cannot_be_kept_are_refused(
    connect: Connect, arguments: dict[str, Any]
) -> None:
    channel = connect().channel()
    with pytest.raises(exceptions.PreconditionFailed):
        durable(channel, "q", **arguments)
    assert not exists(channel, "q")


def test_names_have_limits(connect: Connect) -> None:
    channel = connect().channel()
    with pytest.raises(ValueError, match="longer than 255 bytes"):
        durable(channel, "q" * 256)
    with pytest.raises(exceptions.AccessRefused):
        durable(channel, "amq.mine")
    with pytest.raises(exceptions.AccessRefused):
        channel.exchange_declare("amq.mine", "direct")
    with pytest.raises(exceptions.AccessRefused):
        channel.exchange_declare("", "direct")
    with pytest.raises(exceptions.AccessRefused):
        channel.exchange_delete("amq.direct")
    with pytest.raises(exceptions.InvalidCommand):
        channel.exchange_declare("ex", "x-delayed-message")


def test_the_default_exchange_takes_no_bindings(connect: Connect) -> None:
    channel = connect().channel()
    durable(channel, "q")
    with pytest.raises(exceptions.AccessRefused):
        channel.queue_bind("q", "", "q")


def test_the_weight_of_a_hash_binding_is_checked(connect: Connect) -> None:
    channel = connect().channel()
    channel.exchange_declare("hash", "x-consistent-hash")
    durable(channel, "q")
    with pytest.raises(exceptions.PreconditionFailed, match="weight"):
        channel.queue_bind("q", "hash", "heavy")


def test_bindings_are_told_apart_by_their_arguments(connect: Connect) -> None:
    channel, publisher = connect().channel(), connect().channel()
    durable(channel, "q")

    def arrives(exchange: str, key: str) -> bool:
        publisher.basic_publish(amqp.Message(b"x"), exchange, key)
        return bool(channel.queue_purge("q") == 1)

    channel.queue_bind("q", "amq.topic", "a.*", arguments={"x": 1})
    channel.queue_bind("q", "amq.topic", "a.*", arguments={"x": 1})
    assert arrives("amq.topic", "a.b")
    channel.queue_unbind("q", "amq.topic", "a.*")
    assert arrives("amq.topic", "a.b"), "that was a binding with other arguments"
    channel.queue_unbind("q", "amq.topic", "a.*", arguments={"x": 1})
    assert not arrives("amq.topic", "a.b")


def test_a_queue_is_deleted_only_if(connect: Connect) -> None:
    channel = connect().channel()
    durable(channel, "q")
    channel.basic_publish(amqp.Message(b"x"), "", "q")
    tag = channel.basic_consume("q")
    with pytest.raises(exceptions.PreconditionFailed, match="in use"):
        channel.queue_delete("q", if_unused=True)
    channel.basic_cancel(tag)
    with pytest.raises(exceptions.PreconditionFailed, match="not empty"):
        channel.queue_delete("q", if_empty=True)
    assert channel.queue_delete("q", if_unused=True) == 1


def test_an_exchange_is_deleted_only_if_unused(connect: Connect) -> None:
    channel = connect().channel()
    channel.exchange_declare("ex", "fanout", durable=True, auto_delete=False)
    durable(channel, "q")
    channel.queue_bind("q", "ex")
    with pytest.raises(exceptions.PreconditionFailed, match="in use"):
        channel.exchange_delete("ex", if_unused=True)
    channel.exchange_delete("ex")
    assert not exchange_exists(channel, "ex")
    with pytest.raises(exceptions.NotFound):
        channel.basic_publish(amqp.Message(b"x"), "ex", "")


def test_an_automatic_exchange_goes_with_its_last_binding(connect: Connect) -> None:
    channel = connect().channel()
    channel.exchange_declare("first", "fanout", auto_delete=True)
    channel.exchange_declare("second", "fanout", auto_delete=True)
    channel.exchange_bind("second", "first")
    durable(channel, "q")
    durable(channel, "r")
    channel.queue_bind("q", "second")
    channel.queue_bind("r", "second")
    channel.queue_unbind("q", "second")
    assert exchange_exists(channel, "second")
    channel.queue_delete("r")
    assert not exchange_exists(channel, "second")
    assert not exchange_exists(channel, "first"), "its only binding led to the second"

    channel.exchange_declare("third", "fanout", auto_delete=True)
    channel.queue_bind("q", "third")
    channel.queue_unbind("q", "third")
    assert not exchange_exists(channel, "third")


def test_an_automatic_queue_goes_with_its_last_consumer(connect: Connect) -> None:
    connection, other = connect(), connect()
    channel, watcher = connection.channel(), other.channel()
    channel.queue_declare("q", auto_delete=True)
    assert exists(watcher, "q"), "it waits for its first consumer"
    tag, second = channel.basic_consume("q"), channel.basic_consume("q")
    channel.basic_cancel(tag)
    assert exists(watcher, "q")
    channel.basic_cancel(second)
    assert not exists(watcher, "q")

    channel.queue_declare("q", auto_delete=True)
    channel.basic_consume("q")
    channel.close()
    assert not exists(watcher, "q")

    channel = connection.channel()
    channel.queue_declare("q", auto_delete=True)
    channel.basic_consume("q")
    connection.close()
    assert not exists(watcher, "q")


def test_an_exclusive_queue_is_its_connection_s_alone(connect: Connect) -> None:
    connection, stranger = connect(), connect().channel()
    channel = connection.channel()
    channel.queue_declare("mine", exclusive=True, auto_delete=False)
    connection.channel().queue_declare("mine", exclusive=True, auto_delete=False)
    calls: list[Callable[[], object]] = [
        lambda: stranger.queue_declare("mine", exclusive=True, auto_delete=False),
        lambda: stranger.queue_declare("mine", passive=True),
        lambda: stranger.basic_consume("mine"),
        lambda: stranger.basic_get("mine"),
        lambda: stranger.queue_purge("mine"),
        lambda: stranger.queue_delete("mine"),
        lambda: stranger.queue_bind("mine", "amq.fanout"),
    ]
    for call in calls:
        with pytest.raises(exceptions.ResourceLocked) as caught:
            call()
        assert caught.value.code == 405
    stranger.basic_publish(amqp.Message(b"reply"), "", "mine")
    assert channel.basic_get("mine").body == b"reply", "anybody may publish to it"
    connection.close()
    assert not exists(stranger, "mine")


def test_an_exclusive_consumer_is_the_only_one(connect: Connect) -> None:
    channel, other = connect().channel(), connect().channel()
    durable(channel, "q")
    tag = channel.basic_consume("q", exclusive=True)
    with pytest.raises(exceptions.AccessRefused) as caught:
        other.basic_consume("q")
    assert caught.value.code == 403
    channel.basic_cancel(tag)
    other.basic_consume("q")
    with pytest.raises(exceptions.AccessRefused):
        channel.basic_consume("q", exclusive=True)


def test_nobody_consumes_from_a_queue_that_is_just_being_deleted(connect: Connect) -> None:
    channel, other = connect().channel(), connect().channel()
    durable(channel, "q")
    broker = channel.connection.broker
    broker.catalog.refresh()
    looked_up = broker.catalog.queue("q")
    other.queue_delete("q")
    with pytest.raises(exceptions.NotFound):
        broker.presence.add_consumer(looked_up, exclusive=False)


def test_a_consumer_of_a_deleted_queue_is_told(connect: Connect) -> None:
    connection, other = connect(), connect()
    channel = connection.channel()
    for name in ("told", "raised"):
        durable(channel, name)
    told: list[str] = []
    channel.basic_consume("told", consumer_tag="t", on_cancel=told.append)
    channel.basic_consume("raised", consumer_tag="r")
    other.channel().queue_delete("told")

    def drain() -> list[str]:
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=0.05)
        return told

    assert until(drain) == ["t"]
    channel.queue_delete("raised")
    with pytest.raises(exceptions.ConsumerCancelled):
        connection.drain_events(timeout=5)
    assert isinstance(exceptions.ConsumerCancelled(), connection.recoverable_connection_errors)


def test_every_consumer_of_deleted_queues_is_told_one_after_the_other(connect: Connect) -> None:
    connection = connect()
    channel = connection.channel()
    for name in ("a", "b"):
        durable(channel, name)
        channel.basic_consume(name, consumer_tag=name)
    connection.channel().queue_delete("a")
    connection.channel().queue_delete("b")
    cancelled = set()
    for _ in range(2):
        with pytest.raises(exceptions.ConsumerCancelled) as caught:
            connection.drain_events(timeout=5)
        cancelled.add(caught.value.reply_text)
    assert cancelled == {"a", "b"}


def test_an_unused_queue_expires(connect: Connect) -> None:
    connection = connect()
    channel = connection.channel()
    durable(channel, "brief", **{"x-expires": 200})
    durable(channel, "kept", **{"x-expires": 200})
    channel.basic_consume("kept")

    def gone() -> bool:
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=0.02)
        return not exists(channel, "brief")

    until(gone)
    assert exists(channel, "kept")


@pytest.mark.parametrize("name", ["ex", "new", "amq.direct", "amq.new"])
def test_a_type_that_is_not_known_is_refused_whatever_the_exchange_is(
    connect: Connect, name: str
) -> None:
    channel = connect().channel()
    channel.exchange_declare("ex", "topic")

    with pytest.raises(exceptions.InvalidCommand, match="unknown exchange type 'topik'") as caught:
        channel.exchange_declare(name, "topik")
    assert caught.value.code == 503


class TestTogether:
    """Not in AMQP: what a service declares is seen as a whole, or not at all."""

    def test_nobody_sees_a_part(self, connect: Connect) -> None:
        connection, other = connect(), connect()
        channel, eye = connection.channel(), other.channel()
        with connection.connection.together():
            channel.exchange_declare("ex", "topic", auto_delete=False)
            durable(channel, "q")
            channel.queue_bind("q", "ex", "#")
            assert exists(channel, "q")
        eye.basic_publish(amqp.Message(b"1"), "ex", "any")
        assert channel.queue_purge("q") == 1

    def test_an_error_undoes_all_and_nothing_of_it_is_remembered(self, connect: Connect) -> None:
        connection, other = connect(), connect()
        channel, theirs = connection.channel(), other.channel()

        def declare() -> None:
            channel.exchange_declare("ex", "topic", auto_delete=False)
            durable(channel, "q")
            channel.queue_bind("q", "ex", "#")
            raise ValueError("on the way")

        with pytest.raises(ValueError, match="on the way"), connection.connection.together():
            declare()
        theirs.exchange_declare("another", "topic", auto_delete=False)
        durable(theirs, "q2")  # as many changes as were undone
        theirs.queue_bind("q2", "another", "#")

        assert not exists(channel, "q")
        assert not exchange_exists(channel, "ex")
        assert exists(channel, "q2")

    def test_what_raises_and_is_caught_alone_did_not_happen(self, connect: Connect) -> None:
        connection = connect()
        channel = connection.channel()
        with connection.connection.together():
            durable(channel, "q")
            with pytest.raises(exceptions.NotFound):
                channel.queue_bind("q", "no")
            assert not exists(channel, "no queue")
            durable(channel, "q2")
        assert exists(channel, "q")
        assert exists(channel, "q2")
