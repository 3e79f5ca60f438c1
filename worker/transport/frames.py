"""Takes AMQP frames off a socket without blocking, as many as are there, and writes many at once.

py-amqp reads a frame with three blocking reads of a few bytes each. This pump reads what the
socket holds in one call and hands complete frames to py-amqp's own frame handler, so that a
delivery costs no system call of its own. Blocking calls of py-amqp (declaring a queue, say) read
through the same buffer and the same handler, so both can be used in turn from one thread.

It also keeps one hostile message from taking the connection down: where py-amqp cannot decode
the properties of a message, the message is handed on with
:data:`~worker.message.UNDECODABLE` as its only one. The raw properties of every message are kept
with it, so that it can be set aside byte for byte.

A plain delivery is read here at once (:mod:`worker.transport.arrival`), and so is a confirm where
somebody waits for these; everything else goes through py-amqp, frame by frame, which costs three
times as much.
"""

from __future__ import annotations

import ssl
from struct import Struct, pack, unpack_from
from struct import error as struct_error
from typing import TYPE_CHECKING

from amqp.exceptions import UnexpectedFrame

from worker.message import UNDECODABLE
from worker.transport.arrival import FRAME_END, Arrival, read_delivery
from worker.transport.departure import FRAME_OVERHEAD

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    import amqp

_CHUNK = 256 * 1024
_FRAME_HEADER = 7
_METHOD_FRAME, _HEADER_FRAME = 1, 2
_DELIVER = pack(">HH", 60, 60)
#: Makes a question mark of every byte that is no ASCII.
_TO_ASCII = bytes(range(128)) + b"?" * 128
_ACK = Struct(">BHIHHQBB")
#: What is the same in each: type, size, class, method, end.
_CONFIRM = (_METHOD_FRAME, 13, 60, 80, FRAME_END)
_HEADER_LENGTH = 12  # class id, weight, body size; then flags and properties


def ack_frame(channel: int, tag: int, *, multiple: bool) -> bytes:
    """Return a basic.ack (AMQP 0-9-1, section 1.8.3.13)."""
    return _ACK.pack(1, channel, 13, 60, 80, tag, multiple, FRAME_END)


def _legible(deliver: bytes) -> bytes:
    """Return a basic.deliver whose exchange and routing key py-amqp can decode.

    RabbitMQ takes names that are no UTF-8 from publishers and hands them on.
    """
    exchange = 5 + deliver[4] + 9  # behind the consumer tag, the delivery tag and the flag
    key = exchange + 1 + deliver[exchange]
    name, rest = deliver[exchange + 1 : key], deliver[key + 1 :]
    try:
        name.decode()
        rest.decode()
    except UnicodeDecodeError:
        head, length = deliver[: exchange + 1], deliver[key : key + 1]
        return head + name.translate(_TO_ASCII) + length + rest.translate(_TO_ASCII)
    return deliver


class FramePump:
    """Reads one py-amqp connection. Used by the thread that owns the connection.

    Every delivery becomes an :class:`Arrival` in ``arrivals``. Whoever consumes on a channel of
    the connection gives :meth:`receive` as the callback.
    """

    def __init__(self, connection: amqp.Connection, arrivals: list[Arrival]) -> None:
        self._connection = connection
        self._sock: socket.socket = connection.transport.sock
        self._arrivals = arrivals
        self._data = b""
        self._position = 0
        self._headers: dict[int, bytes] = {}
        self._undecodable: dict[int, str] = {}
        #: Who takes the basic.acks of a channel that publishes with confirms: tag and ``multiple``.
        self.on_confirm: Callable[[int, bool], None] | None = None
        # py-amqp's blocking reads take from our buffer first, and what they read comes to us.
        connection.transport._quick_recv = self._recv  # noqa: SLF001 - its one seam for reading
        self._handle = connection.on_inbound_frame
        connection.on_inbound_frame = self._on_frame

    def fileno(self) -> int:
        """Return the descriptor to wait on for reading."""
        return self._sock.fileno()

    def pending(self) -> bool:
        """Tell whether a read would find bytes that the descriptor no longer shows."""
        if len(self._data) - self._position >= FRAME_OVERHEAD:
            return self._frame_end() is not None
        return isinstance(self._sock, ssl.SSLSocket) and self._sock.pending() > 0

    def write(self, frames: bytes) -> None:
        """Send whole frames, in one system call where the socket takes them."""
        self._connection.transport.write(frames)
        self._connection.bytes_sent += 1  # what py-amqp counts heartbeats by

    def pump(self, limit: int) -> None:
        """Handle the frames that are there, until ``limit`` arrivals wait.

        Raises what py-amqp raises for a connection or channel that the broker closed, and
        OSError where the socket ended.
        """
        arrivals = self._arrivals
        while len(arrivals) < limit:
            if self._take_plain() or self._take_confirm():
                continue
            end = self._frame_end()
            if end is None:
                if not self._fill():
                    return
                continue
            data, start = self._data, self._position
            kind, channel, _ = unpack_from(">BHI", data, start)
            if data[end - 1] != FRAME_END:
                raise UnexpectedFrame("an AMQP frame does not end where it should")
            self._position = end
            self._on_frame((kind, channel, data[start + _FRAME_HEADER : end - 1]))

    def receive(self, message: amqp.Message) -> None:
        """Take what py-amqp delivered."""
        self._arrivals.append(Arrival.of(message))

    def _take_plain(self) -> bool:
        """Take the delivery that comes next, if it is a plain one for a consumer of ours.

        A frame that begins a delivery never comes while another is under way on its channel, so
        py-amqp's own state is that between two messages, before and after.
        """
        found = read_delivery(self._data, self._position)
        if found is None:
            return False
        number, consumer, arrival, end = found
        channel = self._connection.channels.get(number)
        if channel is None or channel.is_closing or consumer not in channel.callbacks:
            return False
        arrival.channel = channel
        self._position = end
        self._connection.bytes_recv += 1  # what py-amqp counts heartbeats by
        self._arrivals.append(arrival)
        return True

    def _take_confirm(self) -> bool:
        """Take the confirm that comes next, if there is one and somebody waits for it.

        Such a connection has one channel.
        """
        if self.on_confirm is None or len(self._data) - self._position < _ACK.size:
            return False
        kind, _, size, basic, ack, tag, multiple, end = _ACK.unpack_from(self._data, self._position)
        if (kind, size, basic, ack, end) != _CONFIRM:
            return False
        self._position += _ACK.size
        self._connection.bytes_recv += 1  # what py-amqp counts heartbeats by
        self.on_confirm(tag, bool(multiple & 1))
        return True

    def _on_frame(self, frame: tuple[int, int, bytes]) -> bool:
        """Hand a frame to py-amqp, and mend the message that it completes."""
        kind, channel, payload = frame
        arrivals = self._arrivals
        before = len(arrivals)
        try:
            if kind == _HEADER_FRAME:
                complete = self._on_header(channel, payload)
            elif kind == _METHOD_FRAME and payload.startswith(_DELIVER):
                complete = bool(self._handle((kind, channel, _legible(payload))))
            else:
                complete = bool(self._handle(frame))
        except (struct_error, LookupError, UnicodeError) as error:
            raise UnexpectedFrame(f"an AMQP frame cannot be read: {error!r}") from error
        if len(arrivals) > before:
            arrival = arrivals[-1]
            arrival.raw = self._headers[channel][_HEADER_LENGTH:]
            if channel in self._undecodable:
                arrival.properties = {UNDECODABLE: self._undecodable.pop(channel)}
        return complete

    def _on_header(self, channel: int, payload: bytes) -> bool:
        self._headers[channel] = payload
        try:
            return bool(self._handle((_HEADER_FRAME, channel, payload)))
        except Exception as error:  # noqa: BLE001 - whatever a hostile header brings about
            self._undecodable[channel] = str(error) or type(error).__name__
        # The same message without its properties. What is wrong with more than these raises again.
        bare = payload[:_HEADER_LENGTH] + pack(">H", 0)
        return bool(self._handle((_HEADER_FRAME, channel, bare)))

    def _frame_end(self) -> int | None:
        """Return where the next frame ends; None while it is not whole."""
        have = len(self._data) - self._position
        if have < _FRAME_HEADER:
            return None
        (size,) = unpack_from(">I", self._data, self._position + 3)
        whole = int(size) + FRAME_OVERHEAD
        return self._position + whole if have >= whole else None

    def _fill(self) -> bool:
        """Read what the socket holds; tell whether there was anything."""
        try:
            chunk = self._recv_now()
        except (BlockingIOError, InterruptedError, ssl.SSLWantReadError):
            return False
        if not chunk:
            raise OSError("the broker closed the connection")
        rest = self._data[self._position :]
        self._data = rest + chunk if rest else chunk
        self._position = 0
        return True

    def _recv_now(self) -> bytes:
        # Not by MSG_DONTWAIT: a socket with a timeout waits for that before it reads.
        timeout = self._sock.gettimeout()
        self._sock.settimeout(0)
        try:
            return self._sock.recv(_CHUNK)
        finally:
            self._sock.settimeout(timeout)

    def _recv(self, size: int) -> bytes:
        """Give py-amqp's blocking reads the buffered bytes first."""
        position = self._position
        if position < len(self._data):
            self._position = min(position + size, len(self._data))
            return self._data[position : self._position]
        return self._sock.recv(size)
