"""Ids of events: UUIDv7 in time order, and ids derived from a parent (RFC 9562).

A derived id is a UUIDv8 over (parent id, handler, position), so that the second execution of a
handler publishes its children under the same ids, and their consumers drop them.
"""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from hashlib import blake2b
from uuid import UUID

_MILLISECONDS = 1_000
_VARIANT = 0x8000_0000_0000_0000
_TEXT_LENGTH = 36


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
    number = number & ~(0xF << 76) | 0x8 << 76
    number = number & ~(0x3 << 62) | _VARIANT
    return str(UUID(int=number))


def time_of_id(message_id: str) -> datetime | None:
    """Return the moment that a UUIDv7 was made at, to the millisecond; None for other ids."""
    if len(message_id) != _TEXT_LENGTH or message_id[14] != "7":
        return None
    try:
        milliseconds = int(message_id[:8] + message_id[9:13], 16)
        return datetime.fromtimestamp(milliseconds / _MILLISECONDS, UTC)
    except (ValueError, OverflowError):
        return None
