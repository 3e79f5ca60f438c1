"""Consuming from the embedded broker, beyond what every transport does.

The rest is in ``worker.testing.transport_suite``, which test_transport_conformance.py runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import amqp
import pytest
from amqp import exceptions

Connect = Callable[..., Any]


def declare(channel: Any, *names: str, **arguments: Any) -> None:
    for name in names:
        channel.queue_declare(name, durable=True, auto_delete=False, arguments=arguments)


def publish(channel: Any, queue: str, *numbers: int) -> None:
    channel.publish_many(
        [(amqp.Message(str(n).encode(), delivery_mode=2), "", queue, True) for n in numbers]
    )


def depth(channel: Any, queue: str) -> int:
    count: int = channel.queue_declare(queue, passive=True).message_count
    return count


class Taker:
    """One consumer on a channel of its own, and what it was given."""

    def __init__(self, connection: Any, queue: str, prefetch: int = 0, **kwargs: Any) -> None:
        self.connection = connection
        self.channel = connection.channel()
        self.channel.basic_qos(0, prefetch, False)
        self.given: list[amqp.Message] = []
        self.tag = self.channel.basic_consume(queue, callback=self.given.append, **kwargs)

    @property
    def numbers(self) -> list[int]:
        return [int(m.body) for m in self.given]

    @property
    def last_tag(self) -> int:
        tag: int = self.given[-1].delivery_info["delivery_tag"]
        return tag

    def drain(self) -> list[int]:
        """Take what is there now; return its numbers."""
        before = len(self.given)
        try:
            while True:
                self.connection.drain_events(timeout=0)
        except TimeoutError:
            return self.numbers[before:]


def prepared(connect: Connect, numbers: Iterable[int], **arguments: Any) -> str:
    """Declare and fill a queue; return its name."""
    channel = connect().channel()
    declare(channel, "q", **arguments)
    publish(channel, "q", *numbers)
    return "q"


def test_prefetch_is_fixed_when_consuming_starts(connect: Connect) -> None:
    taker = Taker(connect(), prepared(connect, range(5)), prefetch=2)
    taker.channel.basic_qos(0, 5, False)
    assert taker.drain() == [0, 1]
    for wrong in ((10, 0, False), (0, 10, True)):
        with pytest.raises(exceptions.AMQPNotImplementedError):
            taker.channel.basic_qos(*wrong)


def test_ack_zero_with_multiple_settles_everything(connect: Connect) -> None:
    queue = prepared(connect, range(6))
    taker = Taker(connect(), queue)
    taker.channel.basic_ack(0, multiple=True)
    taker.drain()
    taker.channel.basic_ack(0, multiple=True)
    taker.channel.close()
    assert depth(connect().channel(), queue) == 0


def test_any_set_can_be_settled_at_once(connect: Connect) -> None:
    queue = prepared(connect, range(6))
    taker = Taker(connect(), queue)
    taker.drain()
    taker.channel.settle([2, 5, 3, 2])
    taker.channel.settle([])
    taker.channel.close()
    assert Taker(connect(), queue).drain() == [0, 3, 5]


def test_many_channels_are_settled_in_one_transaction_or_not_at_all(connect: Connect) -> None:
    setup, connection = connect().channel(), connect()
    declare(setup, "a", "b")
    takers = [Taker(connection, queue) for queue in ("a", "b")]
    for queue in ("a", "b"):
        publish(setup, queue, *range(5))
    takers[0].drain()
    statements: list[str] = []
    trace(connection, statements)
    connection.connection.settle([(takers[0].channel, 2, (4,)), (takers[1].channel, None, [5, 5])])
    assert statements.count("COMMIT") == 1
    with pytest.raises(exceptions.PreconditionFailed):
        connection.connection.settle([(takers[0].channel, 3, ()), (takers[1].channel, 5, ())])
    connection.close()
    assert [Taker(connect(), queue).drain() for queue in ("a", "b")] == [[2, 4], [0, 1, 2, 3]]


def trace(connection: Any, statements: list[str]) -> None:
    """Have the connection's statements appended to ``statements``."""
    database = connection.connection.broker.database._connection
    database.set_trace_callback(statements.append)


def test_settling_twice_or_what_was_never_given_is_an_error(connect: Connect) -> None:
    taker = Taker(connect(), prepared(connect, range(3)))
    taker.drain()
    taker.channel.basic_ack(2)
    calls: list[Callable[[], object]] = [
        lambda: taker.channel.basic_ack(2),
        lambda: taker.channel.basic_ack(2, multiple=True),
        lambda: taker.channel.basic_ack(9, multiple=True),
        lambda: taker.channel.basic_reject(9, requeue=True),
        lambda: taker.channel.settle([1, 9]),
    ]
    for call in calls:
        with pytest.raises(exceptions.PreconditionFailed, match="unknown delivery tag"):
            call()
    taker.channel.basic_ack(1)
    taker.channel.basic_ack(3)


def test_what_is_given_back_comes_first_again_and_says_so(connect: Connect) -> None:
    queue = prepared(connect, range(6))
    taker = Taker(connect(), queue, prefetch=4)
    taker.drain()
    taker.channel.basic_reject(3, requeue=True)
    taker.channel.basic_reject(2, requeue=True)
    assert taker.drain() == [1, 2]
    assert [m.delivery_info["redelivered"] for m in taker.given] == [*[False] * 4, True, True]
    assert [m.delivery_info["delivery_tag"] for m in taker.given[4:]] == [5, 6]


def test_what_is_recovered_returns_to_its_place(connect: Connect) -> None:
    taker = Taker(connect(), prepared(connect, range(6)), prefetch=4)
    taker.drain()
    taker.channel.basic_ack(2)
    taker.channel.basic_recover(requeue=True)
    assert taker.drain() == [0, 2, 3, 4]
    redelivered = [m.delivery_info["redelivered"] for m in taker.given[-4:]]
    assert redelivered == [True, True, True, False]


def test_recover_without_requeue_is_refused(connect: Connect) -> None:
    with pytest.raises(exceptions.AMQPNotImplementedError):
        connect().channel().basic_recover()


def test_a_closed_channel_and_connection_say_so(connect: Connect) -> None:
    connection = connect()
    channel, inner = connection.channel(), connection.connection
    declare(channel, "q")
    channel.close()
    channel.close()
    assert channel.connection is None
    assert not channel.is_open
    with pytest.raises(exceptions.RecoverableConnectionError):
        channel.basic_publish(amqp.Message(b"x"), "", "q")
    inner.close()
    inner.close()
    with pytest.raises(exceptions.RecoverableConnectionError):
        inner.drain_events(timeout=0)
    assert not connection.connected


def test_a_waiting_consumer_is_woken_by_its_own_connection(connect: Connect) -> None:
    taker = Taker(connect(), prepared(connect, []))
    assert taker.drain() == []
    publish(taker.channel, "q", 7)
    assert taker.drain() == [7]


def test_without_acks_a_message_is_gone_when_it_is_given(connect: Connect) -> None:
    queue = prepared(connect, range(3))
    taker = Taker(connect(), queue, prefetch=1, no_ack=True)
    assert taker.drain() == [0, 1, 2]
    assert taker.tag in taker.channel.no_ack_consumers
    taker.channel.close()
    assert depth(connect().channel(), queue) == 0


def test_what_a_callback_raises_comes_through_and_loses_nothing(connect: Connect) -> None:
    connection = connect()
    channel = connection.channel()
    queue = prepared(connect, range(4))
    given: list[int] = []

    def fail_once(message: amqp.Message) -> None:
        given.append(int(message.body))
        if len(given) == 2:
            raise KeyError("a bug of the user's")

    channel.basic_consume(queue, callback=fail_once)
    with pytest.raises(KeyError):
        connection.drain_events(timeout=1)
    connection.drain_events(timeout=1)
    assert given == [0, 1, 2, 3]


@pytest.mark.parametrize("what", ["consumer", "channel", "connection"])
def test_a_callback_may_end_what_it_is_called_by(connect: Connect, what: str) -> None:
    queue = prepared(connect, range(4))
    connection = connect()
    channel = connection.channel()
    given: list[int] = []

    def end(message: amqp.Message) -> None:
        given.append(int(message.body))
        channel.basic_ack(message.delivery_tag)
        if what == "consumer":
            channel.basic_cancel("t")
        else:
            (channel if what == "channel" else connection).close()

    channel.basic_consume(queue, consumer_tag="t", callback=end)
    connection.drain_events(timeout=1)
    assert given == [0]
    assert Taker(connect(), queue).drain() == [1, 2, 3]


def test_a_consumer_without_a_callback_still_settles(connect: Connect) -> None:
    queue = prepared(connect, range(2))
    connection = connect()
    channel = connection.channel()
    channel.basic_consume(queue)
    connection.drain_events(timeout=1)
    channel.basic_ack(0, multiple=True)
    channel.close()
    assert depth(connect().channel(), queue) == 0


def test_flow_stops_deliveries(connect: Connect) -> None:
    taker = Taker(connect(), prepared(connect, range(2)))
    taker.channel.flow(active=False)
    assert taker.drain() == []
    taker.channel.flow(active=True)
    assert taker.drain() == [0, 1]


def test_a_tag_names_one_consumer(connect: Connect) -> None:
    taker = Taker(connect(), prepared(connect, []), consumer_tag="t")
    assert taker.tag == "t"
    with pytest.raises(exceptions.NotAllowed):
        taker.channel.basic_consume("q", consumer_tag="t")
    with pytest.raises(exceptions.AMQPNotImplementedError, match="x-priority"):
        taker.channel.basic_consume("q", arguments={"x-priority": 10})
    taker.channel.basic_cancel("no such tag")


def test_consumers_share_a_queue_and_two_of_one_connection_do_too(connect: Connect) -> None:
    queue = prepared(connect, [])
    connection = connect()
    first, second = Taker(connection, queue), Taker(connection, queue)
    third = Taker(connect(), queue)
    publish(connect().channel(), queue, *range(90))
    connection.drain_events(timeout=1)
    third.connection.drain_events(timeout=1)
    first.drain()
    together = sorted(first.numbers + second.numbers + third.numbers)
    assert together == list(range(90))
    for taker in (first, second, third):
        assert len(taker.numbers) >= 10, "everybody has a share"
        assert taker.numbers == sorted(taker.numbers)


def test_a_full_queue_does_not_starve_another(connect: Connect) -> None:
    channel = connect().channel()
    declare(channel, "full", "slow")
    for start in range(0, 3000, 1000):
        publish(channel, "full", *range(start, start + 1000))
    connection = connect()
    full, slow = Taker(connection, "full"), Taker(connection, "slow")
    publish(channel, "slow", 1)
    connection.drain_events(timeout=1)
    assert slow.numbers == [1], "in the first round"
    assert 0 < len(full.numbers) <= 512, "half of a round"


def test_basic_get_takes_one_and_holds_it(connect: Connect) -> None:
    queue = prepared(connect, range(3))
    connection = connect()
    channel = connection.channel()
    first, second = channel.basic_get(queue), channel.basic_get(queue)
    assert (int(first.body), int(second.body)) == (0, 1)
    assert "consumer_tag" not in first.delivery_info
    assert second.delivery_info["message_count"] == 1
    channel.basic_ack(first.delivery_tag)
    assert Taker(connect(), queue).drain() == [2]
    connection.close()
    assert int(connect().channel().basic_get(queue).body) == 1
    assert connect().channel().basic_get(queue) is None


def test_what_basic_get_holds_survives_a_get_that_finds_nothing(connect: Connect) -> None:
    queue = prepared(connect, range(2))
    channel = connect().channel()
    first = channel.basic_get(queue)
    channel.basic_get(queue, no_ack=True)
    assert channel.basic_get(queue) is None
    assert connect().channel().basic_get(queue) is None
    channel.basic_reject(first.delivery_tag, requeue=True)
    assert int(channel.basic_get(queue).body) == 0


def test_cancelling_keeps_what_is_held_and_returns_what_was_not_given(connect: Connect) -> None:
    queue = prepared(connect, range(6))
    connection = connect()
    channel = connection.channel()
    given: list[int] = []

    def cancel_at_two(message: amqp.Message) -> None:
        given.append(int(message.body))
        if len(given) == 2:
            channel.basic_cancel("t")

    channel.basic_consume(queue, consumer_tag="t", callback=cancel_at_two)
    connection.drain_events(timeout=1)
    assert given == [0, 1]
    other = Taker(connect(), queue)
    assert other.drain() == [2, 3, 4, 5]
    channel.basic_ack(1)
    channel.basic_reject(2, requeue=True)
    assert other.drain() == [1]


SAC = {"x-single-active-consumer": True}


def test_after_a_cancel_the_next_waits_until_all_is_settled(connect: Connect) -> None:
    queue = prepared(connect, range(6), **SAC)
    first, second = Taker(connect(), queue, prefetch=3), Taker(connect(), queue)
    first.drain()
    first.channel.basic_cancel(first.tag)
    assert second.drain() == []
    first.channel.basic_ack(1)
    first.channel.basic_reject(2, requeue=True)
    assert second.drain() == []
    first.channel.basic_ack(3)
    assert second.drain() == [1, 3, 4, 5]


def test_after_a_cancel_closing_the_channel_hands_over_in_order(connect: Connect) -> None:
    queue = prepared(connect, range(6), **SAC)
    first, second = Taker(connect(), queue, prefetch=3), Taker(connect(), queue)
    first.drain()
    first.channel.basic_cancel(first.tag)
    assert second.drain() == []
    first.channel.close()
    assert second.drain() == [0, 1, 2, 3, 4, 5]


def test_a_single_active_queue_is_not_taken_from_by_get(connect: Connect) -> None:
    queue = prepared(connect, range(3), **SAC)
    channel = connect().channel()
    assert int(channel.basic_get(queue).body) == 0
    taker = Taker(connect(), queue)
    assert taker.drain() == [], "it would overtake"
    with pytest.raises(exceptions.ResourceLocked):
        connect().channel().basic_get(queue)
    channel.basic_ack(1)
    assert taker.drain() == [1, 2]


def test_a_new_consumer_of_the_same_channel_waits_for_the_old_one_s(connect: Connect) -> None:
    queue = prepared(connect, range(4), **SAC)
    taker = Taker(connect(), queue, prefetch=2)
    taker.drain()
    taker.channel.basic_cancel(taker.tag)
    taker.channel.basic_consume(queue, callback=taker.given.append)
    assert taker.drain() == []
    taker.channel.basic_ack(2, multiple=True)
    assert taker.drain() == [2, 3]


def test_an_idle_poll_is_cheap(connect: Connect) -> None:
    taker = Taker(connect(), prepared(connect, []))
    taker.drain()
    statements: list[str] = []
    trace(taker.connection, statements)
    for _ in range(10):
        with pytest.raises(TimeoutError):
            taker.connection.drain_events(timeout=0)
    looked = [s for s in statements if "data_version" not in s]
    assert len(looked) <= 4, "one tick at most; else it only asks whether anything changed"
