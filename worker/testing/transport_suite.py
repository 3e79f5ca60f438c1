"""What every transport must do, as tests that authors of transports run against their own.

::

    from worker.testing.transport_suite import Features, TransportConformance

    class TestMyTransport(TransportConformance):
        features = Features(lag=0.1)
        connector = "my_package.tests.connecting:connect"  # URL -> kombu.Connection, open

        @pytest.fixture
        def broker_url(self, my_server):
            return f"mine://localhost:{my_server.port}/{uuid4()}"

Each test gets the URL of a broker on which nothing is declared yet, and connects as often as it
likes. It asks for what the runtime needs of a broker and for no more, by the methods of py-amqp's
channels: RabbitMQ passes it, so do the embedded brokers. Of what is settled and given back by whom
and when, random histories are compared with a model.
"""
# ruff: noqa: S101, D102, PLR2004 - tests: asserts, sentences for names, examples

from __future__ import annotations

import time
from operator import methodcaller
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, ClassVar

import amqp.exceptions
import pytest

from worker.sharding.ring import Ring
from worker.testing.transport_deliveries import TransportDeliveries
from worker.testing.transport_model import TransportMachine, compare_with_model
from worker.testing.transport_peer import Features, Peer, message

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from worker.testing.transport_deliveries import Peers

__all__ = ["Features", "TransportConformance"]


class TransportConformance(TransportDeliveries):
    """Derive a test class from this and override ``broker_url``, and what else differs."""

    #: The random histories: how many, of how many steps each, and the machine that makes them.
    histories: ClassVar[tuple[int, int]] = (30, 40)
    machine: ClassVar[type[TransportMachine]] = TransportMachine

    @pytest.fixture
    def broker_url(self) -> str:
        """Return the URL of a broker on which nothing is declared yet."""
        raise NotImplementedError

    @pytest.fixture
    def peers(self, broker_url: str) -> Iterator[Peers]:
        """``peers(2)``: two peers, each with a connection to the same broker."""
        opened: list[Peer] = []
        connect = resolve_name(self.connector)

        def open_peers(count: int = 1) -> list[Peer]:
            opened.extend(Peer(connect(broker_url), self.features) for _ in range(count))
            return opened[-count:]

        yield open_peers
        for peer in opened:
            peer.close()

    def test_any_history_is_as_the_model_has_it(self, peers: Peers) -> None:
        compare_with_model(self.machine, peers, self.features, *self.histories)

    # Declaring

    def test_a_queue_is_declared_once_and_found_by_others(self, peers: Peers) -> None:
        one, other = peers(2)
        for peer in (one, other, one):
            peer.declare("q", **{"x-message-ttl": 60_000})
        one.publish("q", 1, 2)
        other.wait_for_depth("q", 2)
        one.read("q", prefetch=1).take(1)
        found = other.ask(lambda channel: channel.queue_declare("q", passive=True))
        assert (found.queue, found.consumer_count) == ("q", 1)
        other.wait_for_depth("q", 1)

    def test_what_is_not_there_is_not_found(self, peers: Peers) -> None:
        (peer,) = peers()
        calls: list[Callable[[Any], object]] = [
            lambda channel: channel.queue_declare("q", passive=True),
            lambda channel: channel.exchange_declare("no", "direct", passive=True),
            lambda channel: channel.basic_consume("q"),
            lambda channel: channel.queue_bind("q", "amq.direct"),
            lambda channel: channel.exchange_bind("no", "amq.direct"),
        ]
        for call in calls:
            with pytest.raises(amqp.exceptions.NotFound) as caught:
                peer.ask(call)
            assert caught.value.code == 404
            assert isinstance(caught.value, peer.connection.channel_errors)
        assert peer.ask(lambda channel: channel.queue_delete("q")) == 0
        peer.ask(lambda channel: channel.exchange_delete("no"))

    def test_what_is_there_cannot_be_declared_otherwise(self, peers: Peers) -> None:
        one, other = peers(2)
        one.declare("q", **{"x-message-ttl": 60_000})
        for arguments in ({"x-message-ttl": 1000}, {}):
            with pytest.raises(amqp.exceptions.PreconditionFailed, match="inequivalent arg"):
                other.declare("q", **arguments)
        one.declare_exchange("ex", "topic", **{"alternate-exchange": "ex.relay.4"})
        for kind, rest in (("topic", "ex.relay.8"), ("direct", "ex.relay.4")):
            with pytest.raises(amqp.exceptions.PreconditionFailed, match="for exchange 'ex'"):
                other.declare_exchange("ex", kind, **{"alternate-exchange": rest})
        assert one.depth("q") == 0

    def test_bindings_come_and_go_for_everybody_at_once(self, peers: Peers) -> None:
        one, other = peers(2)
        one.declare("q")
        one.declare_exchange("events", "topic")
        one.declare_exchange("front", "fanout")

        def is_routed(key: str) -> bool:
            other.returned.clear()
            other.send([(message(b"1"), "events", key)])
            assert other.returned in ([], [("events", key, b"1")])
            return not other.returned

        assert not is_routed("user.deposited")
        one.bind("q", "front")
        one.ask(lambda channel: channel.exchange_bind("front", "events", "user.*"))
        assert [is_routed(key) for key in ("user.deposited", "user", "bank.x")] == [
            True,
            False,
            False,
        ]
        one.ask(lambda channel: channel.exchange_unbind("front", "events", "user.*"))
        assert not is_routed("user.deposited")
        one.ask(lambda channel: channel.exchange_bind("front", "events", "#"))
        assert is_routed("user")
        one.ask(lambda channel: channel.queue_unbind("q", "front"))
        assert not is_routed("user")
        assert one.bodies("q", 2) == [1, 1]

    def test_purging_leaves_what_is_held(self, peers: Peers) -> None:
        reading, other = peers(2)
        reading.declare("q")
        reading.publish("q", *range(6))
        reader = reading.read("q", prefetch=2)
        reader.take(2)
        assert other.ask(lambda channel: channel.queue_purge("q")) == 4
        reader.channel.close()
        assert other.bodies("q", 2) == [0, 1]

    def test_what_is_deleted_takes_its_messages_and_bindings_along(self, peers: Peers) -> None:
        (peer,) = peers()
        peer.declare_exchange("ex", "fanout")
        for _ in range(2):
            peer.declare("q")
            peer.bind("q", "ex")
            peer.send([(message(b"1"), "ex", "")])
            assert peer.ask(lambda channel: channel.queue_delete("q")) == 1
        peer.declare("q")
        peer.send([(message(b"2"), "ex", "")])
        assert peer.returned == [("ex", "", b"2")]
        peer.ask(lambda channel: channel.exchange_delete("ex"))
        with pytest.raises(amqp.exceptions.NotFound):
            peer.bind("q", "ex")

    # Publishing

    @pytest.mark.parametrize("size", [0, 1, 131_072, 3_000_000])
    def test_a_message_comes_as_it_was_sent(self, peers: Peers, size: int) -> None:
        (peer,) = peers()
        peer.declare("q")
        headers = {
            "text": "ü",
            "number": -5,
            "big": 2**40,
            "part": 0.5,
            "yes": True,
            "nothing": None,
            "nested": {"list": [1, {"a": "b"}]},
        }
        properties = {
            "content_type": "application/json",
            "application_headers": headers,
            "correlation_id": "c",
            "message_id": "m",
            "timestamp": 1_700_000_000,
            "type": "user.deposited",
            "app_id": "bank",
        }
        body = (bytes(range(256)) * (size // 256 + 1))[:size]
        peer.send([(message(body, **properties), "", "q")])
        reader = peer.read("q")
        peer.wait_until(lambda: reader.given)
        (got,) = reader.given
        assert (got.body or b"") == body
        assert got.properties == {**properties, "delivery_mode": 2}

    def test_exchanges_route_by_key_or_to_all(self, peers: Peers) -> None:
        (peer,) = peers()
        peer.declare("a", "b")
        for kind in ("direct", "fanout", "topic"):
            peer.declare_exchange(kind, kind)
        peer.bind("a", "direct", "x")
        peer.bind("a", "fanout")
        peer.bind("b", "fanout")
        peer.bind("b", "topic", "user.*")
        routed = [("direct", "x"), ("fanout", "any"), ("topic", "user.deposited"), ("", "a")]
        lost = [("direct", "y"), ("topic", "user"), ("topic", "user.a.b"), ("", "nobody")]
        peer.send([(message(b"%d" % n), *way) for n, way in enumerate([*routed, *lost])])
        assert [(exchange, key) for exchange, key, _ in peer.returned] == lost
        assert (peer.bodies("a", 3), peer.bodies("b", 2)) == ([0, 1, 3], [1, 2])

    def test_many_ways_to_one_queue_are_one_message(self, peers: Peers) -> None:
        (peer,) = peers()
        peer.declare("q")
        for name, kind in (("events", "topic"), ("front", "fanout")):
            peer.declare_exchange(name, kind)
        peer.bind("q", "front")
        for key in ("#", "user.*"):
            peer.bind("q", "events", key)
            peer.ask(methodcaller("exchange_bind", "front", "events", key))
        peer.send([(message(b"1"), "events", "user.x")])
        assert peer.bodies("q", 1) == [1]

    def test_an_alternate_exchange_takes_what_nothing_took(self, peers: Peers) -> None:
        (peer,) = peers()
        peer.declare("q", "rest")
        peer.declare_exchange("relay", "fanout")
        peer.declare_exchange("front", "topic", **{"alternate-exchange": "relay"})
        peer.bind("q", "front", "known")
        peer.bind("rest", "relay")
        peer.send([(message(b"1"), "front", "known"), (message(b"2"), "front", "unknown")])
        assert peer.returned == []
        assert (peer.bodies("q", 1), peer.bodies("rest", 1)) == ([1], [2])

    def test_a_key_goes_to_one_shard(self, peers: Peers) -> None:
        (peer,) = peers()
        queues = [f"bank.g1.{shard}" for shard in range(4)]
        peer.declare(*queues)
        keys = [f"user-{number % 17}" for number in range(100)]
        if self.features.spreads_keys:
            arguments = {"hash-header": "qw-key", "hash-fallback": "message_id"}
            peer.declare_exchange("front", "x-consistent-hash", **arguments)
            ring = Ring(dict.fromkeys(queues, 10))
            for queue in queues:
                peer.bind(queue, "front", "10")
            queue_of = {key: ring.lookup(key) for key in keys}
            peer.send([(message(b"-1", message_id="m9"), "front", "a key is missing")])
            assert peer.bodies(ring.lookup("m9"), 1) == [-1]
        else:
            peer.declare_exchange("front", "direct")
            for slot in range(17):
                peer.bind(queues[slot % 4], "front", f"user-{slot}")
            queue_of = {key: queues[number % 17 % 4] for number, key in enumerate(keys)}
        told = [{"qw-key": key, "BCC": [key]} for key in keys]
        messages = [message(b"%d" % n, application_headers=each) for n, each in enumerate(told)]
        peer.send([(one, "front", "user.deposited") for one in messages])
        assert peer.returned == []
        for queue in queues:
            expected = [number for number, key in enumerate(keys) if queue_of[key] == queue]
            assert peer.bodies(queue, len(expected)) == expected

    def test_each_message_is_confirmed_once_and_then_it_is_there(self, peers: Peers) -> None:
        publishing, other = peers(2)
        publishing.declare("q")
        for start in range(0, 90, 30):
            numbers = range(start, start + 30)
            publishing.send([(message(b"%d" % number), "", "q") for number in numbers])
            other.wait_for_depth("q", start + 30)
        assert other.bodies("q", 90) == list(range(90))

    def test_a_batch_is_stored_in_order_and_what_nobody_takes_is_told(self, peers: Peers) -> None:
        (peer,) = peers()
        peer.declare("a", "b")
        peer.declare_exchange("events", "topic")
        ways = [("", "a"), ("", "nobody"), ("", "b"), ("events", "nobody"), ("", "a")]
        batch = [(message(b"%d" % number), *way) for number, way in enumerate(ways)]
        if self.features.batches:
            channel = peer.connection.channel()
            mandatory = [(*each, True) for each in batch]
            assert channel.publish_many(mandatory) == [1, 3]
            assert channel.publish_many([]) == []
            with pytest.raises(amqp.exceptions.NotFound):
                channel.publish_many([*mandatory, (message(b"5"), "no such exchange", "a", True)])
        else:
            peer.send(batch)
            assert [number for _, _, number in peer.returned] == [b"1", b"3"]
        assert (peer.bodies("a", 2), peer.bodies("b", 1)) == ([0, 4], [2])

    def test_priorities_count_where_the_queue_says_so(self, peers: Peers) -> None:
        (peer,) = peers()
        peer.declare("plain")
        peer.declare("ranked", **({"x-max-priority": 5} if self.features.priorities else {}))
        ranks = (0, 3, None, 9, 5, 3)
        for queue in ("plain", "ranked"):
            peer.send(
                [(message(b"%d" % n, priority=rank), "", queue) for n, rank in enumerate(ranks)]
            )
        in_order = list(range(6))
        assert peer.bodies("plain", 6) == in_order
        expected = [3, 4, 1, 5, 0, 2] if self.features.priorities else in_order
        assert peer.bodies("ranked", 6) == expected

    # Retries

    def test_a_retry_waits_and_returns_to_the_queue_that_it_came_from(self, peers: Peers) -> None:
        (peer,) = peers()
        peer.declare("a", "b")
        self._declare_retry_queue(peer, "wait", 200)
        reader, other = peer.read("a"), peer.read("b")
        published = time.monotonic()
        sent = message(b"1", message_id="m", application_headers={"own": 1})
        peer.send([(sent, "wait", "a")])
        assert reader.take(1) == [1]
        assert time.monotonic() - published >= 0.2 * 0.95
        (got,) = reader.given
        assert (got.message_id, got.headers["own"]) == ("m", 1)
        assert (got.delivery_info["exchange"], got.delivery_info["routing_key"]) == ("", "a")
        assert got.delivery_info["redelivered"] is False
        (death,) = got.headers["x-death"]
        assert (death["queue"], death["reason"], death["count"]) == ("wait", "expired", 1)
        assert other.rest() == []
        peer.wait_for_depth("wait", 0)

    def test_retries_return_in_the_order_in_which_they_went(self, peers: Peers) -> None:
        (peer,) = peers()
        peer.declare("q")
        self._declare_retry_queue(peer, "wait", 100)
        peer.send([(message(b"%d" % number), "wait", "q") for number in range(100)])
        assert peer.read("q").take(100) == list(range(100))

    def _declare_retry_queue(self, peer: Peer, name: str, wait: int) -> None:
        arguments = {"x-message-ttl": wait, "x-dead-letter-exchange": ""}
        peer.declare(name, **arguments, **self.features.retry_queue)
        peer.declare_exchange(name, "fanout")
        peer.bind(name, name)
