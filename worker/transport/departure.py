"""A message as it leaves: its frames, and the quick way to write its properties.

Nearly every message has texts and integers for properties and headers.
:func:`plain_properties` writes these in one go. It takes only what it is sure of; for everything
else it answers None, and py-amqp writes the properties, or says what is wrong with them. Layout:
AMQP 0-9-1, sections 1.8.3.7, 4.2.5 and 4.2.6.
"""

from __future__ import annotations

from functools import lru_cache
from struct import Struct, pack
from struct import error as struct_error
from typing import TYPE_CHECKING, Any

from worker.headers import COPIES
from worker.transport.arrival import AFTER_HEADERS, FRAME_END

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

FRAME_OVERHEAD = 8
#: What a frame may have where the broker sets no limit.
_FRAME_MAX = 131072
_METHOD, _CONTENT, _BODY = 1, 2, 3
_BASIC = 60
_PUBLISH = pack(">HHH", _BASIC, 40, 0)
_FRAME = Struct(">BHI")  # type, channel, size
_CONTENT_FRAME = Struct(">BHIHHQ")  # the same, class, weight, body size
_CONTENT_START = 12  # bytes of it before flags and properties
#: Bytes of flags and properties that surely fit: into a frame of the size that brokers and clients
#: agree on unless they are set otherwise.
MOST_PROPERTIES = _FRAME_MAX - FRAME_OVERHEAD - _CONTENT_START
_CONTENT_TYPE, _ENCODING, _HEADERS = 0x8000, 0x4000, 0x2000
_LENGTH = Struct(">I")
_FLAGS = Struct(">H")
_LONG_LONG = Struct(">Q")
_INT, _LONG = Struct(">ci"), Struct(">cq")
#: py-amqp writes integers up to here, and down to its negative, in four bytes.
_MOST = 2**31 - 1
_END = bytes((FRAME_END,))
_LONGEST_NAME = 255  # the length is one byte
#: Texts that come again and again are encoded once; there may be so many of a kind.
_KEPT = 1024
#: Of the properties after the headers, those whose texts come again.
_RECURRING = frozenset({"type", "app_id"})


def publish_frames(  # noqa: PLR0913 - the parts of a publish
    channel: int,
    *,
    exchange: str,
    routing_key: str,
    mandatory: bool,
    properties: bytes,
    body: bytes,
    frame_max: int,
) -> bytes:
    """Return a basic.publish with its content header and body.

    ``properties`` are flags and list as they go on the wire. Raises ValueError for names that are
    too long, and for properties that do not fit into a frame: the broker would end the connection.
    """
    largest = (frame_max or _FRAME_MAX) - FRAME_OVERHEAD
    header, size = _CONTENT_START + len(properties), len(body)
    if header > largest:
        raise ValueError(
            f"its headers and properties have {len(properties)} bytes; the broker takes"
            f" {largest - _CONTENT_START} at most"
        )
    parts = [
        _publish_frame(channel, exchange, routing_key, mandatory),
        _CONTENT_FRAME.pack(_CONTENT, channel, header, _BASIC, 0, size),
        properties,
        _END,
    ]
    for at in range(0, size, largest):
        piece = body[at : at + largest]
        parts += (_FRAME.pack(_BODY, channel, len(piece)), piece, _END)
    return b"".join(parts)


def plain_properties(properties: Mapping[str, Any], headers: Mapping[str, Any]) -> bytes | None:
    """Return property flags and list, as py-amqp writes them; None for what is not plain."""
    try:
        return _plain(properties, headers)
    except (struct_error, AttributeError, TypeError, ValueError):
        return None


def _plain(properties: Mapping[str, Any], headers: Mapping[str, Any]) -> bytes | None:
    table = _table(headers)
    if table is None:
        return None
    flags = _HEADERS
    parts = [b""]  # where the flags go
    if (content_type := properties.get("content_type")) is not None:
        flags |= _CONTENT_TYPE
        parts.append(_recurring(content_type))
    if (encoding := properties.get("content_encoding")) is not None:
        flags |= _ENCODING
        parts.append(_recurring(encoding))
    parts += (_LENGTH.pack(len(table)), table)
    for flag, name, size in AFTER_HEADERS:
        value = properties.get(name)
        if value is None:
            continue
        flags |= flag
        if size == 0:
            parts.append(_recurring(value) if name in _RECURRING else _short_string(value))
        elif size == 1:
            parts.append(bytes((value,)))
        else:
            parts.append(_LONG_LONG.pack(value))
    parts[0] = _FLAGS.pack(flags)
    return b"".join(parts)


def _table(headers: Mapping[str, Any]) -> bytes | None:
    """Return the entries of a table of texts, integers and lists of texts; None for any other."""
    for name in COPIES:
        if name in headers and type(headers[name]) is not list:
            return None
    parts: list[bytes] = []
    for name, value in headers.items():
        if type(value) is str:
            entry = _long_string(value)
        elif type(value) is int:
            entry = _INT.pack(b"I", value) if -_MOST <= value <= _MOST else _LONG.pack(b"L", value)
        elif type(value) is list:
            entry = _array(value)
        else:
            return None
        parts += (_recurring(name), entry)
    return b"".join(parts)


def _array(values: Iterable[str]) -> bytes:
    entries = b"".join([_long_string(value) for value in values])
    return b"A" + _LENGTH.pack(len(entries)) + entries


def _long_string(text: str) -> bytes:
    raw = text.encode()
    return b"S" + _LENGTH.pack(len(raw)) + raw


def _short_string(text: str) -> bytes:
    raw = text.encode()
    return bytes((len(raw),)) + raw


_recurring = lru_cache(maxsize=_KEPT)(_short_string)


@lru_cache(maxsize=_KEPT)
def _publish_frame(channel: int, exchange: str, routing_key: str, mandatory: bool) -> bytes:  # noqa: FBT001 - in AMQP's order
    method = _PUBLISH + _name(exchange) + _name(routing_key) + bytes((mandatory,))
    return _FRAME.pack(_METHOD, channel, len(method)) + method + _END


def _name(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogatepass")
    if len(raw) > _LONGEST_NAME:
        raise ValueError(
            f"{text[:40]!r}… has {len(raw)} bytes; AMQP names have {_LONGEST_NAME} at most"
        )
    return bytes((len(raw),)) + raw
