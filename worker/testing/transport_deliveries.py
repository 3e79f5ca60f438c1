"""The part of the suite of transports that reads: order, prefetch, acks, and who is given what."""
# ruff: noqa: S101, S603, D102 - tests: asserts, sentences for names, examples

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, ClassVar

import amqp.exceptions
import pytest

from worker.testing.transport_peer import Features, Peer

Peers = Callable[..., "list[Peer]"]
Acks = tuple[Any, int | None, tuple[int, ...]]
SINGLE_ACTIVE = {"x-single-active-consumer": True}
#: Takes two messages off a queue, acknowledges none, publishes another, and dies.
_OTHER_PROCESS = """
import os, signal, sys
from pkgutil import resolve_name
from worker.testing.transport_peer import Features, Peer
peer = Peer(resolve_name(sys.argv[1])(sys.argv[2]), Features())
print(*peer.read("q", 2).take(2), flush=True)
peer.publish("q", 9)
os.kill(os.getpid(), signal.SIGKILL)
"""


class TransportDeliveries:
    """What is published is given in order, held until it is settled, and comes back otherwise."""

    features: ClassVar[Features] = Features()
    #: Where the function is that connects to a URL; other processes call it too.
    connector: ClassVar[str] = "worker.testing.transport_peer:connect_to"

    def restart(self) -> None:
        """Restart what keeps the messages: a server, where there is one."""

    # Deliveries

    def test_messages_are_given_in_order_with_tags_from_one(self, peers: Peers) -> None:
        (peer,) = peers()
        peer.declare("q")
        peer.publish("q", *range(300))
        reader = peer.read("q")
        assert reader.take(300) == list(range(300))
        assert [m.delivery_info["delivery_tag"] for m in reader.given] == list(range(1, 301))
        assert reader.given[0].delivery_info == {
            "consumer_tag": reader.tag,
            "delivery_tag": 1,
            "redelivered": False,
            "exchange": "",
            "routing_key": "q",
        }
        assert reader.given[0].channel is reader.channel

    def test_each_channel_has_tags_of_its_own(self, peers: Peers) -> None:
        (peer,) = peers()
        peer.declare("a", "b")
        peer.publish("a", 1, 2)
        peer.publish("b", 3)
        first, second = peer.read("a"), peer.read("b")
        assert (first.take(2), second.take(1)) == ([1, 2], [3])
        assert second.given[0].delivery_tag == 1

    def test_prefetch_bounds_what_is_held(self, peers: Peers) -> None:
        (peer,) = peers()
        peer.declare("q")
        peer.publish("q", *range(10))
        reader = peer.read("q", prefetch=3)
        assert (reader.take(3), reader.rest()) == ([0, 1, 2], [])
        reader.ack(0)
        assert (reader.take(1), reader.rest()) == ([3], [])
        reader.ack(3, multiple=True)
        assert (reader.take(3), reader.rest()) == ([4, 5, 6], [])

    def test_waiting_for_nothing_ends_with_a_timeout(self, peers: Peers) -> None:
        (peer,) = peers()
        peer.declare("q")
        reader = peer.read("q")
        for seconds in (0, 0.1):
            began = time.monotonic()
            with pytest.raises(TimeoutError):
                reader.connection.drain_events(timeout=seconds)
            assert time.monotonic() - began >= seconds * 0.99

    def test_who_waits_is_woken_by_what_others_publish(self, peers: Peers) -> None:
        reading, other = peers(2)
        reading.declare("q")
        reader = reading.read("q")
        assert reader.rest() == []
        other.publish("q", 7)
        assert reader.take(1) == [7]

    def test_a_queue_that_is_read_does_not_keep_others_waiting(self, peers: Peers) -> None:
        reading, other = peers(2)
        reading.declare("full", "slow")
        other.publish("full", *range(2000))
        full, slow = reading.read("full", prefetch=10), reading.read("slow", prefetch=10)
        other.publish("slow", 1)
        assert slow.take(1) == [1]
        assert full.take(10 - len(full.given)) == list(range(10))

    # Settling

    def test_acks_settle_one_or_all_up_to_it(self, peers: Peers) -> None:
        leaving, staying = peers(2)
        leaving.declare("q")
        leaving.publish("q", *range(7))
        reader = leaving.read("q")
        reader.take(7)
        reader.ack(1)
        reader.ack(3, multiple=True)
        reader.ack(5)
        leaving.close()
        assert staying.read("q").take(2) == [4, 6]

    def test_any_set_of_messages_is_settled_on_many_channels(self, peers: Peers) -> None:
        leaving, staying = peers(2)
        queues = ("a", "b", "c")
        leaving.declare(*queues)
        for queue in queues:
            leaving.publish(queue, *range(5))
        a, b, c = (leaving.read(queue) for queue in queues)
        for reader in (a, b, c):
            reader.take(5)
        acks: list[Acks] = [(a.channel, 2, (4,)), (b.channel, None, (5, 1)), (c.channel, 5, ())]
        self._settle(leaving, acks)
        self._settle(leaving, [])
        leaving.close()
        left = [staying.bodies(q, n) for q, n in zip(queues, (2, 3, 0), strict=True)]
        assert left == [[2, 4], [1, 2, 3], []]

    def _settle(self, peer: Peer, acks: list[Acks]) -> None:
        """Acknowledge all up to a tag, and single ones, of each channel: the way of the runtime."""
        if self.features.batches:
            peer.connection.connection.settle(acks)
            return
        for channel, upto, singles in acks:
            if upto is not None:
                channel.basic_ack(upto, multiple=True)
            for tag in singles:
                channel.basic_ack(tag)

    # Giving back

    @pytest.mark.parametrize("way", ["channel", "connection"])
    def test_what_is_not_settled_returns_to_its_place_and_says_so(
        self, peers: Peers, way: str
    ) -> None:
        leaving, staying = peers(2)
        leaving.declare("q")
        leaving.publish("q", *range(6))
        reader = leaving.read("q", prefetch=4)
        reader.take(4)
        reader.ack(1)
        assert reader.take(1) == [4]
        if way == "channel":
            reader.channel.close()
        else:
            leaving.close()
        successor = staying.read("q")
        assert successor.take(5) == [0, 2, 3, 4, 5]
        redelivered = [m.delivery_info["redelivered"] for m in successor.given]
        assert redelivered == [True, True, True, True, False]

    def test_after_a_cancel_nothing_comes_and_what_is_held_is_still_settled(
        self, peers: Peers
    ) -> None:
        (peer, staying) = peers(2)
        peer.declare("q")
        peer.publish("q", *range(3))
        reader = peer.read("q", prefetch=3)
        reader.take(3)
        reader.channel.basic_cancel(reader.tag)
        reader.ack(0)
        peer.publish("q", 3)
        assert reader.rest() == []
        assert staying.bodies("q", 1) == [3]
        reader.ack(1)
        reader.channel.close()
        assert staying.bodies("q", 1) == [2]

    def test_an_error_of_one_channel_is_none_of_the_others(self, peers: Peers) -> None:
        (peer,) = peers()
        peer.declare("q")
        reader = peer.read("q", prefetch=1)
        with pytest.raises(amqp.exceptions.NotFound):
            peer.ask(lambda channel: channel.basic_consume("no such queue"))
        peer.publish("q", 1, 2)
        assert reader.take(1) == [1]
        reader.ack(1)
        assert reader.take(1) == [2]

    def test_one_consumer_is_active_and_the_next_continues_in_order(self, peers: Peers) -> None:
        one, other = peers(2)
        one.declare("q", **SINGLE_ACTIVE)
        one.publish("q", *range(6))
        first = one.read("q", prefetch=3)
        assert first.take(3) == [0, 1, 2]
        second, third = other.read("q", prefetch=3), one.read("q", prefetch=3)
        assert second.rest() == third.rest() == []
        first.ack(0)
        assert first.take(1) == [3]
        first.channel.close()
        assert second.take(3) == [1, 2, 3]
        assert third.rest() == []
        other.close()
        assert third.take(3) == [1, 2, 3]
        third.ack(3, multiple=True)
        assert third.take(2) == [4, 5]

    def test_who_consumes_a_queue_that_is_removed_is_told(self, peers: Peers) -> None:
        reading, other = peers(2)
        reading.declare("q")
        reading.read("q")
        other.ask(lambda channel: channel.queue_delete("q"))
        with pytest.raises(reading.connection.recoverable_connection_errors):
            reading.wait_until(lambda: False)

    # Processes

    def test_what_was_confirmed_is_there_when_everybody_was_away(self, peers: Peers) -> None:
        first, second = peers(2)
        first.declare("q")
        first.publish("q", *range(5))
        second.read("q", prefetch=2).take(2)
        for peer in (first, second):
            peer.close()
        self.restart()
        (later,) = peers()
        assert later.bodies("q", 5) == list(range(5))

    def test_what_a_process_held_that_was_killed_comes_back_in_order(
        self, peers: Peers, broker_url: str
    ) -> None:
        (peer,) = peers()
        peer.declare("q")
        peer.publish("q", *range(4))
        said = subprocess.run(
            [sys.executable, "-c", _OTHER_PROCESS, self.connector, broker_url],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            check=False,
            text=True,
        )
        if not self.features.shared:
            assert "NotFound" in said.stderr
            assert peer.bodies("q", 4) == [0, 1, 2, 3]
            return
        assert said.stdout.split() == ["0", "1"], said.stderr
        reader = peer.read("q")
        assert reader.take(5) == [0, 1, 2, 3, 9]
        assert [m.delivery_info["redelivered"] for m in reader.given[:2]] == [True, True]
