"""The proxy does to connections what it says, tells nobody who must not know, and heals."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from time import monotonic

import pika
import pytest
import redis

from chaos.faults.proxy import CONFIRM, PUBLISH, Proxy
from chaos.lines import Line
from machines.network import Way
from servers.process import free_ports
from waiting import until

FAR_TOO_LONG = 600.0


@pytest.fixture
def link(redis_url: str) -> Iterator[Proxy]:
    with Proxy(redis_url) as made:
        yield made


@pytest.fixture
def url(link: Proxy, redis_url: str) -> str:
    return link.url_through(redis_url)


@pytest.fixture
def near(redis_url: str) -> Iterator[redis.Redis]:
    """A client that does not go through the link."""
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def line(url: str) -> Iterator[Line]:
    with Line(url) as made:
        yield made


def test_what_is_left_alone_goes_through_as_it_is(link: Proxy, url: str) -> None:
    values = [bytes([n]) * 500_000 for n in range(20)]

    def exchange(number: int, value: bytes) -> None:
        with redis.Redis.from_url(url) as client:
            client.set(f"value {number}", value)
            found[number] = client.get(f"value {number}")

    found: dict[int, object] = {}
    threads = [threading.Thread(target=exchange, args=pair) for pair in enumerate(values)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found == dict(enumerate(values))
    until(lambda: link.connections == 0, message="the proxy closes what both ends have closed")


def test_a_delay_counts_each_way(link: Proxy, line: Line) -> None:
    with link.delay(0.1):
        since = monotonic()
        assert line.ask("PING") == "+PONG"
        assert monotonic() - since >= 0.2

    with link.delay(FAR_TOO_LONG):
        line.say("PING")
    assert line.hear() == "+PONG", "what was under way comes at the end"


def test_a_narrow_link_takes_its_time(link: Proxy, line: Line) -> None:
    with link.limit(100_000):
        since = monotonic()
        assert line.ask(f"SET k {'x' * 20_000}") == "+OK"
        assert monotonic() - since >= 0.14  # of 0.2 s, the first slice is free

    with link.limit(1):
        line.say("PING")
    assert line.hear() == "+PONG"


def test_what_is_held_arrives_though_its_sender_is_gone(
    link: Proxy, url: str, near: redis.Redis
) -> None:
    with Line(url) as line, link.hold(Way.TO):
        line.say("INCR n")
        line.close()
        assert near.get("n") is None

    until(lambda: near.get("n") == b"1", message="it arrives")


@pytest.mark.parametrize(
    ("way", "effect"), [(Way.TO, None), (Way.FROM, b"1"), (Way.BOTH, None)], ids=str
)
def test_a_cut_swallows_one_way_and_tells_nobody(
    link: Proxy, url: str, near: redis.Redis, way: Way, effect: bytes | None
) -> None:
    with Line(url) as line, Line(url) as silent:
        with link.cut(way):
            line.say("INCR n")
            until(lambda: link.torn, message="something was swallowed")
            assert near.get("n") == effect
            assert link.connections == 2

        with pytest.raises(ConnectionResetError):
            line.hear()
        assert silent.ask("PING") == "+PONG", "who lost nothing goes on"


def test_in_a_cut_no_end_of_a_connection_is_seen(link: Proxy, url: str, near: redis.Redis) -> None:
    def is_connected() -> bool:
        return any(client["name"] == "gone" for client in near.client_list())

    with link.cut(Way.FROM), Line(url.rpartition("/")[0]) as line:
        line.say("CLIENT SETNAME gone")
        until(is_connected, message="the request arrives, and the answer does not")
        with link.cut(Way.TO):
            line.close()
            until(lambda: link.torn, message="the end is swallowed")
            assert is_connected()

    until(lambda: not is_connected(), message="the server learns of it in the end")


def test_a_reset_ends_both_sides(link: Proxy, line: Line, near: redis.Redis) -> None:
    line.ask("CLIENT SETNAME gone")

    link.reset()

    with pytest.raises(ConnectionResetError):
        line.hear()
    until(lambda: all(client["name"] != "gone" for client in near.client_list()))


def test_who_is_refused_learns_at_once(link: Proxy, line: Line, url: str) -> None:
    with link.refuse():
        with pytest.raises(ConnectionRefusedError):
            Line(url)
        assert line.ask("PING") == "+PONG", "who is there goes on"

    with Line(url) as other:
        assert other.ask("PING") == "+PONG"


def test_a_reply_that_is_lost(link: Proxy, line: Line, near: redis.Redis) -> None:
    with link.lose_reply(asked=b"INCR") as lost:
        assert line.ask("PING") == "+PONG", "that was not meant"
        line.say("INCR n")
        with pytest.raises(ConnectionResetError):
            line.hear()
        assert lost.is_set()

    assert near.get("n") == b"1"


def test_a_reply_is_lost_once(link: Proxy, line: Line, url: str) -> None:
    with link.lose_reply(), Line(url.rpartition("/")[0]) as other:
        line.say("INCR n")
        with pytest.raises(ConnectionResetError):
            line.hear()
        assert other.ask("PING") == "+PONG"


def test_a_confirm_that_is_lost(amqp_url: str) -> None:
    with Proxy(amqp_url) as link:
        parameters = pika.URLParameters(link.url_through(amqp_url))
        with pika.BlockingConnection(parameters) as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            channel.queue_declare("box", durable=True)
            with link.lose_reply(PUBLISH, CONFIRM) as lost:
                with pytest.raises(pika.exceptions.AMQPConnectionError):
                    channel.basic_publish("", "box", b"hello")
                assert lost.is_set()

    with pika.BlockingConnection(pika.URLParameters(amqp_url)) as connection:
        assert connection.channel().basic_get("box", auto_ack=True)[2] == b"hello"


def test_all_at_once_is_healed_at_once(link: Proxy, url: str) -> None:
    with ExitStack() as stack:
        stack.enter_context(link.delay(FAR_TOO_LONG))
        stack.enter_context(link.limit(1))
        stack.enter_context(link.hold())
        stack.enter_context(link.cut())
        stack.enter_context(link.refuse())
        stack.enter_context(link.lose_reply())

        link.heal()

        with Line(url) as line:
            assert line.ask("PING") == "+PONG"


def test_a_fault_ends_with_the_proxy(link: Proxy) -> None:
    with link.cut(), link.lose_reply():
        link.close()

    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", link.port))


def test_a_server_that_is_not_there_resets() -> None:
    (nobody,) = free_ports(1)
    url = f"redis://127.0.0.1:{nobody}"

    with (
        Proxy(url) as link,
        pytest.raises((ConnectionResetError, BrokenPipeError)),
        Line(link.url_through(url)) as line,
    ):
        line.ask("PING")
