"""AMQP frames by hand, and a py-amqp connection that reads them off a socket without a broker."""

from __future__ import annotations

import socket
from functools import cache
from struct import pack
from types import SimpleNamespace
from typing import Self

import amqp
from amqp.method_framing import frame_handler, frame_writer
from amqp.transport import TCPTransport

from worker.transport.arrival import Arrival
from worker.transport.frames import FramePump

METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
FRAME_MAX = 128 * 1024


def frame(kind: int, channel: int, payload: bytes) -> bytes:
    """Return a whole frame."""
    return pack(">BHI", kind, channel, len(payload)) + payload + b"\xce"


def short(text: str | bytes) -> bytes:
    """Return a short string."""
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return bytes([len(data[:255])]) + data[:255]


def delivery(
    tag: int, body: bytes, properties: bytes, routing_key: str = "", channel: int = 1
) -> bytes:
    """Return the frames of one message as a broker delivers it."""
    method = pack(">HH", 60, 60) + short("tag") + pack(">QB", tag, 0) + short("x")
    header = pack(">HHQ", 60, 0, len(body)) + properties
    size = FRAME_MAX - 8
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(
        (
            frame(METHOD, channel, method + short(routing_key)),
            frame(HEADER, channel, header),
            *(frame(BODY, channel, part) for part in parts),
        )
    )


class Wire:
    """A real py-amqp connection and channel over a socket whose other end is the test's.

    ``far`` is that other end; ``pump`` reads ours, and ``arrivals`` is where deliveries land.
    """

    def __init__(self) -> None:
        ours, self.far = socket.socketpair()
        self.arrivals: list[Arrival] = []
        connection = amqp.Connection("nowhere:1")
        transport = TCPTransport("nowhere:1")
        transport.sock = ours
        transport._setup_transport()  # what connecting would do
        connection._transport = transport  # a connection without a broker
        connection.on_inbound_frame = frame_handler(connection, connection.on_inbound_method)
        connection.frame_writer = frame_writer(connection, transport)
        self.pump = FramePump(connection, self.arrivals)
        self.connection = connection
        self.add_channel(1)

    def add_channel(self, number: int) -> amqp.Channel:
        """Return a channel whose deliveries land in ``arrivals``."""
        return _channel(self.connection, number, self.pump)

    def send(self, data: bytes) -> None:
        """Write what the broker says."""
        self.far.sendall(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.transport.sock.close()
        self.far.close()


def _channel(connection: amqp.Connection, number: int, pump: FramePump) -> amqp.Channel:
    channel = amqp.Channel(connection, number)
    channel.auto_decode = False
    channel.callbacks["tag"] = pump.receive
    return channel


class _Instant:
    """A socket that holds some bytes and never blocks."""

    def __init__(self) -> None:
        self.data = b""

    def gettimeout(self) -> float:
        return 0.0

    def settimeout(self, seconds: float) -> None:
        pass

    def recv(self, size: int) -> bytes:
        if not self.data:
            raise BlockingIOError
        chunk, self.data = self.data[:size], self.data[size:]
        return chunk


class _Desk:
    """A pump that takes one message at a time, in no time."""

    def __init__(self) -> None:
        self._sock = _Instant()
        self._arrivals: list[Arrival] = []
        connection = amqp.Connection("nowhere:1")
        connection._transport = SimpleNamespace(  # a connection without a broker
            sock=self._sock, _quick_recv=self._sock.recv
        )
        connection.on_inbound_frame = frame_handler(connection, connection.on_inbound_method)
        self._pump = FramePump(connection, self._arrivals)
        self._connection = connection
        _channel(connection, 1, self._pump)

    def take(self, frames: bytes) -> Arrival:
        self._sock.data = frames
        self._pump.pump(1)
        (arrival,) = self._arrivals
        self._arrivals.clear()
        return arrival


@cache
def _desk() -> _Desk:
    return _Desk()


def deliver(body: bytes, properties: bytes, routing_key: str = "user.deposited") -> Arrival:
    """Return a message as it comes out of the pump: encoded, through frames, and read again."""
    try:
        return _desk().take(delivery(1, body, properties, routing_key))
    except BaseException:
        _desk.cache_clear()  # it may be in the middle of a message
        raise
