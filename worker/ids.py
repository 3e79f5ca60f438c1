"""Ids of events: UUIDv7 in time order, and ids derived from a parent (RFC 9562).

A derived id is a UUIDv8 over (parent id, handler, position), so that the second execution of a
handler publishes its children under the same ids, and their consumers drop them. It begins with the
time of its parent's, so that stores find all that comes of an event in one place.
"""

from __future__ import annotations

import os
import time
from binascii import unhexlify
from datetime import UTC, datetime
from hashlib import blake2b
from uuid import UUID

_MILLISECONDS = 1_000
_VARIANT = 0x8000_0000_0000_0000
_TEXT_LENGTH = 36
#: Bits of the time, at the front; all behind them.
_TIME_BITS = 48
_REST = 2 ** (128 - _TIME_BITS) - 1


def new_id(now: float | None = None) -> str:
    """Return a new UUIDv7 as text. ``now`` is seconds since the epoch, by default this moment."""
    milliseconds = int((time.time() if now is None else now) * _MILLISECONDS) & (2**48 - 1)
    random = int.from_bytes(os.urandom(10), "big")
    high = milliseconds << 16 | 0x7000 | (random >> 68)
    low = _VARIANT | (random & (2**62 - 1))
    text = f"{high:016x}{low:016x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def derived_id(parent: str, handler: str, position: int) -> str:
    """Return the id of the ``position``-th message that ``handler`` publishes for ``parent``."""
    seed = f"{parent}\0{handler}\0{position}".encode("utf-8", "surrogatepass")
    number = int.from_bytes(blake2b(seed, digest_size=16).digest(), "big")
    if (front := front_of(parent)) is not None:
        number = int.from_bytes(front, "big") << 128 - _TIME_BITS | number & _REST
    number = number & ~(0xF << 76) | 0x8 << 76
    number = number & ~(0x3 << 62) | _VARIANT
    return str(UUID(int=number))


def front_of(message_id: str) -> bytes | None:
    """Return the six bytes that a UUIDv7, or what is derived from one, begins with: its time.

    None for other ids. Of a UUIDv8 that somebody else made it may be anything.
    """
    if len(message_id) != _TEXT_LENGTH or message_id[14] not in "78":
        return None
    try:
        return unhexlify(message_id[:8] + message_id[9:13])
    except ValueError:  # it only looks like one
        return None


def time_of_id(message_id: str) -> datetime | None:
    """Return the moment that a UUIDv7 was made at, to the millisecond; None for other ids."""
    front = front_of(message_id)
    if front is None or message_id[14] != "7":
        return None
    try:
        return datetime.fromtimestamp(int.from_bytes(front, "big") / _MILLISECONDS, UTC)
    except (ValueError, OverflowError):
        return None
