"""The pump takes frames as they come, and one hostile message never costs the next good one."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from contextlib import suppress
from struct import pack
from typing import Any

import amqp
import pytest
from amqp.exceptions import AMQPError
from hypothesis import given, settings
from hypothesis import strategies as st

from frames import BODY, FRAME_MAX, HEADER, HEARTBEAT, METHOD, Wire, delivery, frame, short
from worker.message import UNDECODABLE
from worker.transport.arrival import Arrival, read_delivery
from worker.transport.departure import publish_frames
from worker.transport.frames import ack_frame

PLAIN = pack(">H", 0x0080) + short("id-1")
#: A header whose type no one knows.
HOSTILE = pack(">HI", 0x2000, 3) + b"\x01h?"
ALL = 10_000


@pytest.fixture
def wire() -> Iterator[Wire]:
    with Wire() as open_wire:
        yield open_wire


def bodies(wire: Wire) -> list[bytes]:
    return [arrival.body for arrival in wire.arrivals]


class TestReading:
    def test_a_message_arrives_with_body_properties_and_where_it_came_from(
        self, wire: Wire
    ) -> None:
        wire.send(delivery(7, b"{}", PLAIN, "user.deposited"))
        wire.pump.pump(ALL)

        (arrival,) = wire.arrivals
        assert arrival.body == b"{}"
        assert arrival.properties == {"message_id": "id-1"}
        assert arrival.tag == 7
        assert arrival.routing_key == "user.deposited"

    def test_its_properties_are_kept_as_they_came(self, wire: Wire) -> None:
        wire.send(delivery(1, b"{}", PLAIN))
        wire.pump.pump(ALL)

        assert wire.arrivals[0].raw == PLAIN

    def test_a_message_without_a_body_has_an_empty_one(self, wire: Wire) -> None:
        wire.send(delivery(1, b"", PLAIN))
        wire.pump.pump(ALL)

        assert bodies(wire) == [b""]

    def test_nothing_there_is_nothing_done(self, wire: Wire) -> None:
        wire.pump.pump(ALL)

        assert wire.arrivals == []
        assert not wire.pump.pending()

    @settings(max_examples=100, deadline=None)
    @given(st.integers(0, 2**32))
    def test_frames_arrive_whole_however_the_network_cuts_them(self, seed: int) -> None:
        rng = random.Random(seed)
        sent = [rng.randbytes(rng.choice([0, 1, 100, 5000])) for _ in range(rng.randint(1, 8))]
        stream = b"".join(
            delivery(tag, body, rng.choice([PLAIN, HOSTILE])) + frame(HEARTBEAT, 0, b"") * (tag % 2)
            for tag, body in enumerate(sent, 1)
        )
        with Wire() as wire:
            while stream:
                size = rng.choice([1, 3, 7, 8, 100, 4096])
                wire.send(stream[:size])
                stream = stream[size:]
                wire.pump.pump(ALL)
            assert bodies(wire) == sent

    def test_a_body_of_many_frames_is_put_together(self, wire: Wire) -> None:
        body = random.Random(0).randbytes(3 * FRAME_MAX)
        stream = delivery(1, body, PLAIN)
        for start in range(0, len(stream), 50_000):
            wire.send(stream[start : start + 50_000])
            wire.pump.pump(ALL)

        assert bodies(wire) == [body]

    def test_messages_of_several_channels_may_be_interleaved(self, wire: Wire) -> None:
        wire.add_channel(2)
        one, two = (delivery(1, name, PLAIN, channel=n) for n, name in ((1, b"one"), (2, b"two")))
        cut = one.index(frame(BODY, 1, b"one"))
        wire.send(one[:cut] + two + one[cut:])
        wire.pump.pump(ALL)

        assert bodies(wire) == [b"two", b"one"]

    def test_it_stops_when_enough_has_arrived_and_tells_that_there_is_more(
        self, wire: Wire
    ) -> None:
        wire.send(b"".join(delivery(tag, b"x", PLAIN) for tag in range(1, 6)))
        wire.pump.pump(2)

        assert len(wire.arrivals) == 2
        assert wire.pump.pending()
        wire.pump.pump(ALL)
        assert len(wire.arrivals) == 5
        assert not wire.pump.pending()

    def test_half_a_frame_is_nothing_to_wake_up_for(self, wire: Wire) -> None:
        wire.send(delivery(1, b"x", PLAIN)[:-3])
        wire.pump.pump(ALL)

        assert not wire.pump.pending()

    def test_blocking_calls_of_py_amqp_read_through_the_same_buffer(self, wire: Wire) -> None:
        wire.send(delivery(1, b"a", PLAIN) + delivery(2, b"b", HOSTILE) + delivery(3, b"", PLAIN))
        wire.pump.pump(1)
        while len(wire.arrivals) < 3:
            wire.connection.drain_events()

        assert bodies(wire) == [b"a", b"b", b""]
        assert [a.raw for a in wire.arrivals] == [PLAIN, HOSTILE, PLAIN]
        assert UNDECODABLE in wire.arrivals[1].properties

    def test_a_connection_that_ends_is_told(self, wire: Wire) -> None:
        wire.send(delivery(1, b"x", PLAIN))
        wire.far.shutdown(socket.SHUT_RDWR)

        with pytest.raises(OSError, match="closed"):
            wire.pump.pump(ALL)
        assert bodies(wire) == [b"x"]


class TestHostileMessages:
    @pytest.mark.parametrize(
        "properties",
        [
            HOSTILE,
            b"",
            b"\xff",
            b"\xff\xff" + b"\xff" * 100,
            pack(">HI", 0x2000, 11) + b"\x01hT" + b"\xff" * 8,
            pack(">H", 0x0080) + b"\x02\xff\xfe",
            pack(">HI", 0x2000, 100_000) + b"\x01h" + b"A\0\0\xff\xff" * 20_000,
        ],
    )
    def test_properties_that_cannot_be_decoded_are_told_and_the_body_arrives(
        self, wire: Wire, properties: bytes
    ) -> None:
        wire.send(delivery(1, b"hostile", properties) + delivery(2, b"good", PLAIN))
        wire.pump.pump(ALL)
        hostile, good = wire.arrivals

        assert list(hostile.properties) == [UNDECODABLE]
        assert hostile.properties[UNDECODABLE]
        assert (hostile.body, hostile.raw) == (b"hostile", properties)
        assert (good.body, good.properties) == (b"good", {"message_id": "id-1"})

    @settings(max_examples=400, deadline=None, derandomize=True)
    @given(
        st.lists(st.tuples(st.binary(max_size=60), st.binary(max_size=5)), min_size=1, max_size=5)
    )
    def test_any_properties_let_the_next_good_message_through(
        self, hostile: list[tuple[bytes, bytes]]
    ) -> None:
        with Wire() as wire:
            for tag, (properties, body) in enumerate(hostile, 1):
                wire.send(delivery(tag, body, properties))
            wire.send(delivery(99, b"good", PLAIN))
            wire.pump.pump(ALL)

            assert bodies(wire) == [body for _, body in hostile] + [b"good"]
            assert [a.raw for a in wire.arrivals[:-1]] == [raw for raw, _ in hostile]

    @pytest.mark.parametrize(
        ("exchange", "routing_key", "seen"),
        [
            (b"x", b"user.\xff", ("x", "user.?")),
            (b"\xc3", b"user.\xc3\xa9", ("?", "user.??")),
            (b"\xff" * 255, b"\xff" * 255, ("?" * 255, "?" * 255)),
            (b"", b"user.\xc3\xa9", ("", "user.é")),
            (b"", b"", ("", "")),
        ],
    )
    def test_names_that_are_no_utf8_are_made_legible(
        self, wire: Wire, exchange: bytes, routing_key: bytes, seen: tuple[str, str]
    ) -> None:
        """RabbitMQ takes them from publishers, and py-amqp would end the connection."""
        method = pack(">HH", 60, 60) + short("tag") + pack(">QB", 2**63, 0)
        wire.send(
            frame(METHOD, 1, method + short(exchange) + short(routing_key))
            + frame(HEADER, 1, pack(">HHQ", 60, 0, 0) + PLAIN)
        )
        wire.pump.pump(ALL)
        (arrival,) = wire.arrivals

        assert (arrival.exchange, arrival.routing_key) == seen
        assert arrival.tag == 2**63


TEXTS = st.text(max_size=40)
TABLES = st.dictionaries(
    st.text(max_size=20),
    st.one_of(
        TEXTS,
        st.integers(-(2**63), 2**63 - 1),
        st.booleans(),
        st.none(),
        st.binary(max_size=9),
        st.lists(st.integers(0, 9), max_size=2),
    ),
    max_size=4,
)
PROPERTIES = st.fixed_dictionaries(
    {},
    optional={
        "content_type": TEXTS,
        "content_encoding": TEXTS,
        "application_headers": TABLES,
        "delivery_mode": st.integers(0, 255),
        "priority": st.integers(0, 255),
        "correlation_id": TEXTS,
        "reply_to": TEXTS,
        "expiration": TEXTS,
        "message_id": TEXTS,
        "timestamp": st.integers(0, 2**64 - 1),
        "type": TEXTS,
        "user_id": TEXTS,
        "app_id": TEXTS,
        "cluster_id": TEXTS,
    },
)


class TestPlainDeliveries:
    """What is read in one go is what py-amqp reads frame by frame."""

    @given(properties=PROPERTIES, body=st.binary(max_size=50), key=TEXTS, redelivered=st.booleans())
    @settings(max_examples=500, deadline=None)
    def test_both_ways_read_the_same(
        self, properties: dict[str, Any], body: bytes, key: str, redelivered: bool
    ) -> None:
        raw = amqp.Message(body, **properties)._serialize_properties()
        whole = bytearray(delivery(7, body, raw, key))
        whole[7 + 4 + 4 + 8] = redelivered
        method_end = bytes(whole).index(b"\xce\x02") + 1
        with Wire() as wire:
            wire.send(bytes(whole))
            wire.pump.pump(ALL)
            wire.send(bytes(whole[:method_end]))
            wire.pump.pump(ALL)
            wire.send(bytes(whole[method_end:]))
            wire.pump.pump(ALL)
            quick, slow = wire.arrivals

        for name in Arrival.__slots__:
            assert getattr(quick, name) == getattr(slow, name), name
        assert quick.redelivered is redelivered

    def test_a_common_delivery_is_read_in_one_go(self) -> None:
        properties = {
            "content_type": "application/json",
            "application_headers": {"qw-key": "k", "x-delivery-count": 3},
            "delivery_mode": 2,
            "message_id": "id-1",
            "timestamp": 1,
        }
        raw = amqp.Message(b"", **properties)._serialize_properties()
        frames = delivery(7, b"{}", raw, "a.b")

        found = read_delivery(b"before" + frames + b"after", 6)

        assert found is not None
        assert found.arrival.properties == properties
        assert found.end == 6 + len(frames)

    @given(at=st.integers(0, 200), byte=st.integers(0, 255))
    @settings(max_examples=500, deadline=None)
    def test_a_damaged_delivery_is_left_to_the_careful_way(self, at: int, byte: int) -> None:
        frames = bytearray(delivery(7, b"{}", PLAIN, "a.b"))
        frames[at % len(frames)] = byte

        found = read_delivery(bytes(frames), 0)

        assert found is None or found.end <= len(frames)

    @given(keep=st.integers(0, 200))
    def test_what_is_not_whole_yet_is_not_read(self, keep: int) -> None:
        frames = delivery(7, b"{}", PLAIN, "a.b")

        assert read_delivery(frames[: keep % len(frames)], 0) is None


class TestBrokenFraming:
    @pytest.mark.parametrize(
        "stream",
        [
            frame(HEARTBEAT, 0, b"")[:-1] + b"\0",
            frame(HEADER, 1, b"\0" * 14),
            frame(BODY, 1, b"x"),
            frame(METHOD, 1, b"\0"),
            frame(METHOD, 1, pack(">HH", 60, 60)) + frame(HEADER, 1, b"\0\x3c"),
            frame(METHOD, 1, pack(">HH", 60, 60))
            + frame(HEADER, 1, pack(">HHQ", 50, 0, 0) + b"\0\0"),
            frame(METHOD, 1, pack(">HH", 60, 60))
            + frame(HEADER, 1, pack(">HHQ", 60, 0, 0) + b"\0\0"),
            frame(METHOD, 9, pack(">HH", 20, 40) + b"\0" * 20),
            frame(99, 1, b""),
            delivery(1, b"", PLAIN, channel=9),
        ],
    )
    def test_it_ends_the_connection_with_an_error_of_py_amqp(
        self, wire: Wire, stream: bytes
    ) -> None:
        wire.send(stream)

        with pytest.raises(AMQPError):
            wire.pump.pump(ALL)

    @settings(max_examples=400, deadline=None, derandomize=True)
    @given(
        st.lists(
            st.tuples(
                st.sampled_from([METHOD, HEADER, BODY, HEARTBEAT, 0, 255]),
                st.integers(0, 2),
                st.binary(max_size=40)
                | st.sampled_from([pack(">HH", 60, 60), pack(">HHQ", 60, 0, 0) + PLAIN]),
            ),
            max_size=6,
        )
    )
    def test_any_frames_are_handled_or_end_the_connection(
        self, frames: list[tuple[int, int, bytes]]
    ) -> None:
        with Wire() as wire:
            wire.send(b"".join(frame(*one) for one in frames))
            with suppress(AMQPError, OSError):
                wire.pump.pump(ALL)


class TestWriting:
    """What is written is what py-amqp would have written."""

    def far_end(self, wire: Wire) -> bytes:
        wire.far.settimeout(0.2)
        data = b""
        try:
            while chunk := wire.far.recv(1024 * 1024):
                data += chunk
        except TimeoutError:
            pass
        return data

    @pytest.mark.parametrize("size", [0, 1, 1000, FRAME_MAX - 8, FRAME_MAX - 7])
    @pytest.mark.parametrize("mandatory", [False, True])
    def test_a_publish(self, wire: Wire, size: int, mandatory: bool) -> None:
        body = b"b" * size
        message = amqp.Message(body, message_id="id-1", application_headers={"a": 1})
        channel: Any = wire.connection.channels[1]
        channel.basic_publish(message, "qw.events", "user.deposited", mandatory=mandatory)

        assert self.far_end(wire) == publish_frames(
            1,
            exchange="qw.events",
            routing_key="user.deposited",
            mandatory=mandatory,
            properties=message._serialize_properties(),
            body=body,
            frame_max=FRAME_MAX,
        )

    @pytest.mark.parametrize("multiple", [False, True])
    def test_an_ack(self, wire: Wire, multiple: bool) -> None:
        channel: Any = wire.connection.channels[1]
        channel.basic_ack(2**40 + 5, multiple=multiple)

        assert self.far_end(wire) == ack_frame(1, 2**40 + 5, multiple=multiple)

    def publish(self, **changes: Any) -> bytes:
        given = {"exchange": "", "routing_key": "", "properties": b"\0\0", "body": b""}
        return publish_frames(1, mandatory=False, frame_max=4096, **{**given, **changes})

    @pytest.mark.parametrize("name", ["exchange", "routing_key"])
    def test_a_name_that_amqp_cannot_carry_is_refused(self, name: str) -> None:
        self.publish(**{name: "x" * 255})
        with pytest.raises(ValueError, match="255"):
            self.publish(**{name: "é" * 128})

    def test_properties_that_do_not_fit_into_a_frame_are_refused(self) -> None:
        assert len(self.publish(properties=b"\0" * 4076)) > 4096
        with pytest.raises(ValueError, match="4077 bytes; the broker takes 4076 at most"):
            self.publish(properties=b"\0" * 4077)
