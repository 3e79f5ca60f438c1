"""An archived event that is sent to a service again: to which handlers, and by whose memory. Pure.

Its id is the one that it was published under. So a handler that remembers it as done drops it, and
a replay does what was not done. One that is to be done *again* has a memory of its own: the record
of each task is made of the plain one and of the replay's id. What is sent twice in one replay is a
duplicate still; another replay, and what is published, have records of theirs.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

#: Headers: the id of the replay; the names of the handlers that it is for, all where it is not
#: there; and one that is there where they shall do it again.
REPLAY = "qw-replay"
HANDLERS = "qw-replay-handlers"
AGAIN = "qw-replay-again"
#: Header: the names of the publisher's headers that had no room beside these.
LEFT_OUT = "qw-replay-left-out"
_SEPARATOR = " "  # which no handler's name has in it


def replay_headers(replay_id: str, handlers: Iterable[str], *, again: bool) -> dict[str, str]:
    """Return the headers of what a replay sends."""
    found = {REPLAY: replay_id}
    if names := _SEPARATOR.join(handlers):
        found[HANDLERS] = names
    if again:
        found[AGAIN] = "1"
    return found


def chosen_handlers(headers: Mapping[str, object]) -> frozenset[str] | None:
    """Return the names of the handlers that a message is for; None where it is for all."""
    names = headers.get(HANDLERS)
    return frozenset(names.split(_SEPARATOR)) if isinstance(names, str) else None


def occasion_of(headers: Mapping[str, object]) -> str:
    """Return what parts the memory of a message from that of its id; empty where nothing does."""
    occasion = headers.get(REPLAY) if AGAIN in headers else ""
    return occasion if isinstance(occasion, str) else ""


def record_again(record: bytes, occasion: str) -> bytes:
    """Return the record of a task that is done again on this occasion."""
    told = record + occasion.encode("utf-8", "surrogatepass")
    return blake2b(told, digest_size=len(record), person=b"again").digest()


def remembered_as(message_id: str, headers: Mapping[str, object]) -> str:
    """Return what a database of the handler's own remembers a message by: its id, or that again."""
    occasion = occasion_of(headers)
    return f"{message_id}@{occasion}" if occasion else message_id
