"""AMQP message properties and argument tables to bytes and back, without loss.

The bytes are MessagePack. What MessagePack does not know of AMQP's field tables (decimals,
dates, integers beyond 64 bits) travels as extension types, so that a header comes back equal to
what was sent, whatever it is. Nothing that runs code is ever decoded.

Limits are AMQP's own: short strings (names, routing keys, text properties, the keys of a table)
have at most 255 bytes of UTF-8.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import msgspec
from msgspec import Meta

if TYPE_CHECKING:
    from collections.abc import Mapping

_SHORT_STRING = 255
#: Characters that fit into a short string whatever they are: four bytes each at most.
_SURELY_SHORT = _SHORT_STRING // 4
_LARGEST_OCTET = 255
_INTEGER_BITS = 63  # and a sign

#: Types that MessagePack takes as they are. Exact types: an enum, say, is handled apart.
_PLAIN = frozenset((str, int, float, bool, bytes, type(None)))

#: The numbers of the extension types.
_DECIMAL, _DATETIME, _INTEGER = 1, 2, 3

_ShortText: TypeAlias = Annotated[str, Meta(max_length=_SURELY_SHORT)]
_Octet: TypeAlias = Annotated[int, Meta(ge=0, le=_LARGEST_OCTET)]


class _Properties(msgspec.Struct, omit_defaults=True, gc=False):
    """The properties of nearly every message, by py-amqp's names; what does not fit is special."""

    app_id: _ShortText | None = None
    application_headers: dict[_ShortText, Any] | None = None
    cluster_id: _ShortText | None = None
    content_encoding: _ShortText | None = None
    content_type: _ShortText | None = None
    correlation_id: _ShortText | None = None
    delivery_mode: _Octet | None = None
    expiration: _ShortText | None = None
    message_id: _ShortText | None = None
    priority: _Octet | None = None
    reply_to: _ShortText | None = None
    timestamp: int | None = None
    type: _ShortText | None = None
    user_id: _ShortText | None = None


_NAMES = frozenset(_Properties.__struct_fields__)
_OCTETS = frozenset(("delivery_mode", "priority"))


class Unencodable(ValueError):
    """A message or a table that AMQP cannot carry. Sending it again will not help.

    ``index`` is its place in the batch where it was published with others, else 0.
    """

    index = 0


def check_short_string(value: object, what: str) -> str:
    """Return ``value`` if it is text of at most 255 bytes; raises Unencodable otherwise."""
    if not isinstance(value, str):
        raise Unencodable(f"{what} must be text, not {type(value).__name__}")
    if value.isascii() and len(value) <= _SHORT_STRING:
        return value
    try:
        size = len(value.encode())
    except UnicodeEncodeError as error:
        raise Unencodable(f"{what} is not valid text: {error}") from None
    if size > _SHORT_STRING:
        raise Unencodable(f"{what} is longer than {_SHORT_STRING} bytes: {value[:60]!r}…")
    return value


def encode_properties(properties: Mapping[str, Any]) -> bytes:
    """Encode the properties of a message, by py-amqp's names. Unknown and None ones are left out.

    Raises Unencodable where AMQP has no room or no type for one of them.
    """
    try:
        plain = msgspec.convert(properties, _Properties)
        headers = plain.application_headers
        if not headers or _PLAIN.issuperset(map(type, headers.values())):
            return _encoder.encode(plain)
    except (msgspec.ValidationError, OverflowError, UnicodeEncodeError):
        pass
    return _encode_specially(properties)


def decode_properties(data: bytes) -> dict[str, Any]:
    """Return the properties that ``encode_properties`` was given."""
    properties: dict[str, Any] = _decoder.decode(data)
    return properties


def encode_table(table: Mapping[str, Any] | None) -> bytes:
    """Encode an argument table. Equal tables, in whatever order, give equal bytes."""
    table = table or {}
    _check_table(table)
    return _encode(_special(table), _sorting)


def decode_table(data: bytes) -> dict[str, Any]:
    """Return the table that ``encode_table`` was given."""
    table: dict[str, Any] = _decoder.decode(data)
    return table


def _encode_specially(properties: Mapping[str, Any]) -> bytes:
    """Encode what needs a closer look, and say what is wrong with it if anything is."""
    kept: dict[str, Any] = {}
    for name, value in properties.items():
        if name not in _NAMES or value is None:
            continue
        if name == "application_headers":
            _check_table(value)
            kept[name] = _special(value)
        elif name in _OCTETS:
            if not isinstance(value, int) or not 0 <= value <= _LARGEST_OCTET:
                raise Unencodable(f"{name} must be a number from 0 to 255, not {value!r}")
            kept[name] = int(value)
        elif name == "timestamp":
            kept[name] = _special(value)
        else:
            kept[name] = str.__str__(check_short_string(value, name))
    return _encode(kept, _encoder)


def _encode(value: object, encoder: msgspec.msgpack.Encoder) -> bytes:
    try:
        return encoder.encode(value)
    except (UnicodeEncodeError, RecursionError) as error:
        raise Unencodable(f"cannot be encoded: {error}") from None


def _check_table(table: object) -> None:
    if not isinstance(table, dict):
        raise Unencodable(f"a table of headers or arguments must be a dict, not {table!r}")
    for key in table:
        check_short_string(key, "the name of a header or argument")


def _special(value: object) -> object:  # noqa: PLR0911 - one return a type is the clearest
    """Return ``value`` with what MessagePack does not know wrapped into extension types."""
    match value:
        case bool() | float() | bytes() | None:
            return value
        case str():
            return str.__str__(value)
        case int():
            if value.bit_length() <= _INTEGER_BITS:
                return int(value)
            return msgspec.msgpack.Ext(_INTEGER, str(int(value)).encode())
        case dict():
            _check_table(value)
            return {key: _special(item) for key, item in value.items()}
        case list() | tuple():
            return [_special(item) for item in value]
        case bytearray() | memoryview():
            return bytes(value)
        case datetime():
            return msgspec.msgpack.Ext(_DATETIME, value.isoformat().encode())
        case Decimal():
            return msgspec.msgpack.Ext(_DECIMAL, str(value).encode())
    raise Unencodable(f"AMQP has no type for {value!r} ({type(value).__name__})")


def _unwrap(code: int, data: memoryview) -> object:
    text = bytes(data).decode()
    if code == _DECIMAL:
        return Decimal(text)
    if code == _DATETIME:
        return datetime.fromisoformat(text)
    if code == _INTEGER:
        return int(text)
    raise ValueError(f"unknown extension type {code} in stored properties")


_encoder = msgspec.msgpack.Encoder()
_sorting = msgspec.msgpack.Encoder(order="deterministic")
_decoder = msgspec.msgpack.Decoder(ext_hook=_unwrap)
