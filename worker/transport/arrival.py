"""A message as the broker delivered it, and the quick way to read one from its frames.

Nearly every delivery is three frames that lie side by side: *basic.deliver*, a content header and
one body frame. :func:`read_delivery` reads these in one go. It takes only what it is sure of; for
everything else (a body in several frames, an unusual header, what cannot be decoded, what is not
whole yet) it answers None, and py-amqp reads the frames one by one. Layout: AMQP 0-9-1, sections
1.8.3.9, 2.3.5 and 4.2.6.1.
"""

from __future__ import annotations

from struct import Struct
from struct import error as struct_error
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import amqp

FRAME_END = 0xCE
_FRAME = Struct(">BHI")  # type, channel, size
_HEADER = Struct(">HHQH")  # class, weight, body size, property flags
_LENGTH = Struct(">I")
_SIGNED = Struct(">i")
_LONG_LONG = Struct(">q")
_TAG = Struct(">Q")
_METHOD, _CONTENT, _BODY = 1, 2, 3
_DELIVER = b"\x00\x3c\x00\x3c"
_BASIC = 60
_CONTENT_TYPE, _ENCODING, _HEADERS, _MORE_FLAGS = 0x8000, 0x4000, 0x2000, 0x0001
#: The properties after the headers, in the order of their flags, by py-amqp's names; the bytes of
#: the value, 0 for a short string.
AFTER_HEADERS = (
    (0x1000, "delivery_mode", 1),
    (0x0800, "priority", 1),
    (0x0400, "correlation_id", 0),
    (0x0200, "reply_to", 0),
    (0x0100, "expiration", 0),
    (0x0080, "message_id", 0),
    (0x0040, "timestamp", 8),
    (0x0020, "type", 0),
    (0x0010, "user_id", 0),
    (0x0008, "app_id", 0),
    (0x0004, "cluster_id", 0),
)
_TEXT, _LONG_INTEGER, _INTEGER = ord("S"), ord("l"), ord("I")


class Arrival:
    """A delivered message: its envelope decoded, its body and properties as they came."""

    __slots__ = (
        "body", "channel", "exchange", "properties", "raw", "redelivered", "routing_key", "tag",
    )  # fmt: skip

    def __init__(  # noqa: PLR0913, PLR0917 - the facts of a delivery; one is made for each
        self,
        channel: Any,
        tag: int,
        redelivered: bool,  # noqa: FBT001 - in AMQP's order, as all of them
        exchange: str,
        routing_key: str,
        properties: dict[str, Any],
        body: bytes,
        raw: bytes | None = None,
    ) -> None:
        self.channel = channel
        self.tag = tag
        self.redelivered = redelivered
        self.exchange = exchange
        self.routing_key = routing_key
        #: AMQP basic properties by py-amqp's names.
        self.properties = properties
        self.body = body
        #: Property flags and list byte for byte; None where the broker has none.
        self.raw = raw

    @classmethod
    def of(cls, message: amqp.Message) -> Arrival:
        """Return what py-amqp, or a transport of ours, delivered."""
        info = message.delivery_info
        return cls(
            message.channel,
            info["delivery_tag"],
            bool(info["redelivered"]),
            info["exchange"],
            info["routing_key"],
            message.properties,
            message.body or b"",
        )


class Read(NamedTuple):
    """What :func:`read_delivery` found."""

    channel: int
    consumer: str
    #: Its channel is not known yet.
    arrival: Arrival
    #: Where the next frame begins.
    end: int


def read_delivery(data: bytes, start: int) -> Read | None:
    """Read the delivery whose first frame begins at ``start``; None for what is not plain."""
    try:
        return _read(data, start)
    except (struct_error, IndexError, UnicodeDecodeError):
        return None


def _read(data: bytes, start: int) -> Read | None:
    kind, channel, size = _FRAME.unpack_from(data, start)
    at = start + 7
    if kind != _METHOD or data[at : at + 4] != _DELIVER:
        return None
    method_end = at + size
    header = method_end + 8
    kind, other, size = _FRAME.unpack_from(data, method_end + 1)
    header_end = header + size
    body_kind, last, body_size = _FRAME.unpack_from(data, header_end + 1)
    body = header_end + 8
    end = body + body_size
    if (
        kind != _CONTENT
        or body_kind != _BODY
        or not channel == other == last
        or not data[method_end] == data[header_end] == data[end] == FRAME_END
    ):
        return None
    class_id, _, whole, flags = _HEADER.unpack_from(data, header)
    if class_id != _BASIC or whole != body_size or flags & _MORE_FLAGS:
        return None
    properties = _properties(data, header + 14, header_end, flags)
    if properties is None:
        return None
    at += 5 + data[at + 4]
    consumer = data[start + 12 : at].decode()
    (tag,) = _TAG.unpack_from(data, at)
    redelivered = bool(data[at + 8] & 1)
    at += 10
    key = at + data[at - 1]
    exchange = data[at:key].decode()
    if key + 1 + data[key] != method_end:
        return None
    routing_key = data[key + 1 : method_end].decode()
    arrival = Arrival(
        None,
        tag,
        redelivered,
        exchange,
        routing_key,
        properties,
        data[body:end],
        data[header + 12 : header_end],
    )
    return Read(channel, consumer, arrival, end + 1)


def _properties(data: bytes, at: int, end: int, flags: int) -> dict[str, Any] | None:
    """Decode the property list between ``at`` and ``end``; None where a header is not plain."""
    found: dict[str, Any] = {}
    if flags & _CONTENT_TYPE:
        stop = at + 1 + data[at]
        found["content_type"] = data[at + 1 : stop].decode()
        at = stop
    if flags & _ENCODING:
        stop = at + 1 + data[at]
        found["content_encoding"] = data[at + 1 : stop].decode()
        at = stop
    if flags & _HEADERS:
        (size,) = _LENGTH.unpack_from(data, at)
        at += 4
        headers = _headers(data, at, at + size)
        if headers is None:
            return None
        found["application_headers"] = headers
        at += size
    for flag, name, size in AFTER_HEADERS:
        if flags & flag:
            if size == 0:
                stop = at + 1 + data[at]
                found[name] = data[at + 1 : stop].decode()
                at = stop
            elif size == 1:
                found[name] = data[at]
                at += 1
            else:
                (found[name],) = _TAG.unpack_from(data, at)
                at += 8
    return found if at == end else None


def _headers(data: bytes, at: int, end: int) -> dict[str, Any] | None:
    """Decode a table of texts and integers; None where there is anything else."""
    found: dict[str, Any] = {}
    while at < end:
        stop = at + 1 + data[at]
        name = data[at + 1 : stop].decode()
        kind = data[stop]
        stop += 1
        if kind == _TEXT:
            (size,) = _LENGTH.unpack_from(data, stop)
            at = stop + 4 + size
            found[name] = data[stop + 4 : at].decode()
        elif kind == _LONG_INTEGER:
            (found[name],) = _LONG_LONG.unpack_from(data, stop)
            at = stop + 8
        elif kind == _INTEGER:
            (found[name],) = _SIGNED.unpack_from(data, stop)
            at = stop + 4
        else:
            return None
    return found if at == end else None
