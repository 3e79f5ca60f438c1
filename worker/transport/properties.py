"""Changes AMQP content properties without decoding them, so that the rest stays byte for byte.

A message that is set aside keeps its body and headers exactly as its publisher sent them, even
where they cannot be decoded. Only what would harm it in its new place is renamed or removed, and
what the runtime has to say is appended as headers of its own. Layout: AMQP 0-9-1, section 4.2.6.1,
and the field types as RabbitMQ reads them ("AMQP 0-9-1 Errata", section 3).
"""

from __future__ import annotations

from struct import error as struct_error
from struct import pack, unpack_from
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

_HAS_CONTENT_TYPE, _HAS_ENCODING, _HAS_HEADERS = 0x8000, 0x4000, 0x2000
_HAS_EXPIRATION, _HAS_USER = 0x0100, 0x0010
#: The properties after the headers, in the order of their flags: the flag, and the bytes of its
#: value, 0 for a short string.
_AFTER_HEADERS = (
    (0x1000, 1),  # delivery mode
    (0x0800, 1),  # priority
    (0x0400, 0),  # correlation id
    (0x0200, 0),  # reply to
    (0x0100, 0),  # expiration
    (0x0080, 0),  # message id
    (0x0040, 8),  # timestamp
    (0x0020, 0),  # type
    (0x0010, 0),  # user id
    (0x0008, 0),  # app id
    (0x0004, 0),  # cluster id
)
_FIXED = {
    b"t": 1, b"b": 1, b"B": 1, b"s": 2, b"u": 2, b"I": 4, b"i": 4, b"l": 8, b"L": 8,
    b"f": 4, b"d": 8, b"D": 5, b"T": 8, b"V": 0,
}  # fmt: skip
_COUNTED = (b"S", b"x", b"A", b"F")

#: What can be added as a header.
HeaderValue = str | int | list[str]


class Malformed(ValueError):
    """The properties do not follow the layout."""


def amend(
    raw: bytes,
    *,
    add: Mapping[str, HeaderValue],
    rename: Mapping[bytes, bytes],
    drop_prefix: bytes | None = None,
) -> bytes:
    """Return ``raw`` (property flags and list) with other headers.

    ``rename`` gives headers another name, ``drop_prefix`` removes those that then begin with it,
    and ``add`` is appended, in place of headers of the same names. The properties *expiration* and
    *user id* are dropped: the first would make the message vanish from where it is put, the second
    is refused from another user. Raises Malformed where ``raw`` does not follow the layout.
    """
    try:
        return _amend(raw, add, rename, drop_prefix)
    except (struct_error, IndexError) as error:
        raise Malformed(str(error)) from None


def _amend(
    raw: bytes,
    add: Mapping[str, HeaderValue],
    rename: Mapping[bytes, bytes],
    drop_prefix: bytes | None,
) -> bytes:
    (flags,) = unpack_from(">H", raw, 0)
    if flags & 1:
        raise Malformed("more property flags than AMQP 0-9-1 has")
    position = 2
    before = b""
    for flag in (_HAS_CONTENT_TYPE, _HAS_ENCODING):
        if flags & flag:
            end = _short_string_end(raw, position)
            before += raw[position:end]
            position = end
    entries: list[bytes] = []
    if flags & _HAS_HEADERS:
        (length,) = unpack_from(">I", raw, position)
        position += 4
        end = position + length
        replaced = {name.encode() for name in add}
        for name, value in _entries(raw, position, end):
            kept = rename.get(name, name)
            if kept in replaced or (drop_prefix is not None and kept.startswith(drop_prefix)):
                continue
            entries.append(_entry(kept, value))
        position = end
    after = _after_headers(raw, flags, position)
    entries.extend(_entry(name.encode(), _encode(value)) for name, value in add.items())
    table = b"".join(entries)
    flags = (flags | _HAS_HEADERS) & ~(_HAS_EXPIRATION | _HAS_USER)
    return pack(">H", flags) + before + pack(">I", len(table)) + table + after


def _after_headers(raw: bytes, flags: int, position: int) -> bytes:
    """Return the properties that follow the headers, less those that are dropped."""
    kept = b""
    for flag, size in _AFTER_HEADERS:
        if not flags & flag:
            continue
        end = position + size if size else _short_string_end(raw, position)
        if end > len(raw):
            raise Malformed("the properties end too early")
        if flag not in (_HAS_EXPIRATION, _HAS_USER):
            kept += raw[position:end]
        position = end
    return kept


def _entries(raw: bytes, position: int, end: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield the (name, type and value) of each header of a table."""
    if end > len(raw):
        raise Malformed("the headers end too early")
    while position < end:
        name_end = _short_string_end(raw, position)
        name = raw[position + 1 : name_end]
        kind = raw[name_end : name_end + 1]
        if kind in _FIXED:
            value_end = name_end + 1 + _FIXED[kind]
        elif kind in _COUNTED:
            (length,) = unpack_from(">I", raw, name_end + 1)
            value_end = name_end + 5 + length
        else:
            raise Malformed(f"a header has the unknown type {kind!r}")
        if value_end > end:
            raise Malformed("a header ends outside its table")
        yield name, raw[name_end:value_end]
        position = value_end


def _short_string_end(raw: bytes, position: int) -> int:
    end = position + 1 + raw[position]
    if end > len(raw):
        raise Malformed("a short string ends too early")
    return end


def _entry(name: bytes, value: bytes) -> bytes:
    return bytes((len(name[:255]),)) + name[:255] + value


def _encode(value: HeaderValue) -> bytes:
    if isinstance(value, int):
        return b"l" + pack(">q", value)
    if isinstance(value, list):
        items = b"".join(map(_encode, value))
        return b"A" + pack(">I", len(items)) + items
    text = value.encode("utf-8", "replace")
    return b"S" + pack(">I", len(text)) + text


def amend_decoded(
    headers: Mapping[str, object],
    *,
    add: Mapping[str, HeaderValue],
    rename: Mapping[str, str],
    drop_prefix: str | None = None,
) -> dict[str, object]:
    """Do to decoded ``headers`` what :func:`amend` does to raw ones."""
    renamed = {rename.get(name, name): value for name, value in headers.items()}
    kept = {
        name: value
        for name, value in renamed.items()
        if drop_prefix is None or not str(name).startswith(drop_prefix)
    }
    return {**kept, **add}


def without(properties: Mapping[str, object], names: Collection[str]) -> dict[str, object]:
    """Return ``properties`` less ``names``."""
    return {name: value for name, value in properties.items() if name not in names}
