"""What RabbitMQ hands on, however hostile, ends in the dead-letter queue, and the rest goes on."""

from __future__ import annotations

import time
from contextlib import closing
from struct import pack
from typing import Any

import pytest

from frames import BODY, HEADER, METHOD, frame, short
from worker import App
from worker.codec import Codec
from worker.config import load_settings
from worker.consumer import Consumer
from worker.deadletters import Box
from worker.dedup.base import StoreOptions
from worker.dedup.memory import MemoryStore
from worker.testing.pools import INLINE
from worker.transport.capabilities import connect
from worker.transport.inbound import release

IDENTITY = short("id-1") + short("user.deposited")
GOOD = pack(">H", 0x00A0) + IDENTITY


def table(*entries: bytes) -> bytes:
    content = b"".join(entries)
    return pack(">I", len(content)) + content


def text(name: bytes, value: bytes) -> bytes:
    return short(name) + b"S" + pack(">I", len(value)) + value


def with_headers(*entries: bytes) -> bytes:
    return pack(">H", 0x20A0) + table(*entries) + IDENTITY


def nested(levels: int) -> bytes:
    value = b"V"
    for _ in range(levels):
        value = b"A" + pack(">I", len(value)) + value
    return short(b"h") + value


CC = short(b"CC") + b"A" + table(b"S" + pack(">I", 10) + b"bank.g1.99")

#: Routing key, properties, body, and what the reason of the dead letter says.
HOSTILE: dict[str, tuple[bytes, bytes, bytes, str]] = {
    "a routing key that is no utf8": (b"user.\xff", GOOD, b"{", "not JSON"),
    "an id that is no utf8": (
        b"user.x",
        pack(">H", 0x80) + short(b"\xff"),
        b"{}",
        "can't decode byte 0xff",
    ),
    "no body": (b"user.x", GOOD, b"", "not JSON"),
    "no properties": (b"user.x", b"\0\0", b"{}", "no id"),
    "a header that is no utf8": (b"user.x", with_headers(text(b"\xff", b"\xff")), b"{", "not JSON"),
    "headers of deep nesting": (b"user.x", with_headers(nested(20_000)), b"{}", "recursion"),
    "headers that fill a frame": (
        b"user.x",
        with_headers(text(b"h", b"x" * 130_900)),
        b"{",
        "JSON",
    ),
    "a body of deep nesting": (b"user.x", GOOD, b"[" * 100_000, "not JSON"),
    "a body of many frames": (b"user.x", GOOD, b"x" * 1_500_000, "at most 1048576 are taken"),
    "copies to other queues": (b"user.x", with_headers(CC), b"{", "not JSON"),
    "a time that no clock shows": (
        b"user.x",
        pack(">H", 0x00E0) + short("id-1") + b"\xff" * 8 + short("user.deposited"),
        b"{",
        "not JSON",
    ),
}


class Publisher:
    """Writes frames by hand, as only a hostile client would."""

    def __init__(self, url: str) -> None:
        self._connection: Any = connect(url, heartbeat=0, timeout=10, name="hostile")
        self._channel: Any = self._connection.channel()
        self._channel.confirm_select()
        self._confirmed = 0
        self._channel.events["basic_ack"].add(self._on_ack)

    def close(self) -> None:
        release(self._connection)

    def publish(self, routing_key: bytes, properties: bytes, body: bytes) -> None:
        method = pack(">HHH", 60, 40, 0) + short("qw.events") + short(routing_key) + b"\0"
        number = self._channel.channel_id
        parts = [body[at : at + 100_000] for at in range(0, len(body), 100_000)]
        self._connection.connection.transport.write(
            frame(METHOD, number, method)
            + frame(HEADER, number, pack(">HHQ", 60, 0, len(body)) + properties)
            + b"".join(frame(BODY, number, part) for part in parts)
        )
        wanted = self._confirmed + 1
        while self._confirmed < wanted:
            self._connection.drain_events(timeout=10)

    def _on_ack(self, *_: object) -> None:
        self._confirmed += 1


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_message_is_set_aside_and_the_next_good_one_is_handled(
    kind: str, amqp_url: str
) -> None:
    routing_key, properties, body, told = HOSTILE[kind]
    app = App("bank")
    seen: list[object] = []
    app.on("user.*", name="record")(seen.append)
    settings = load_settings({"broker": amqp_url, "dedup": "memory://"}, {})
    store = MemoryStore(StoreOptions())
    consumer = Consumer(app, settings, shards=[0], store=store, pools=INLINE)
    consumer.open()
    with closing(consumer), closing(Publisher(amqp_url)) as publisher:
        publisher.publish(routing_key, properties, body)
        good = pack(">H", 0x00A0) + short("id-2") + short("user.deposited")
        publisher.publish(b"user.deposited", good, b'{"good": true}')
        deadline = time.monotonic() + 20
        while consumer.tick(0.05) or not (seen and consumer.is_idle()):
            assert time.monotonic() < deadline, consumer.statistics()

        assert seen == [{"good": True}]
        assert consumer.counters.reconnects == 0
        with Box("bank.dlq", Codec.of("bank", settings), settings) as box:
            (letter,) = box.read()
        # What cannot be decoded here cannot be decoded there: its reason is among it.
        assert told in (letter.reason or letter.undecodable)
        assert letter.body == body
