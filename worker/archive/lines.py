"""Archived events as JSON lines, and back. Pure.

A line is an object with everything of its event: ``id``, ``name``, ``payload``, and, where there
are any, ``key``, ``time``, ``headers``, ``properties``. The payload's bytes stay as they are, since
they tell copies of an event apart; one that has line breaks is the text ``payload_text``. So a line
of ``qworker publish --file``, where it has an id and a payload, can be imported too: ``priority``
and ``transient`` say how it was to be sent, and are not kept.

Whoever wrote a line may have written anything. What is not kept of an event that is archived is not
kept of a line either; and what no broker would take is refused: a replay could not get past it.
"""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
import orjson

from worker.archive import wire
from worker.archive.entry import (
    KEPT,
    Entry,
    Unarchivable,
    check_body,
    check_text,
    kept,
    microseconds,
    moment_of,
)
from worker.archive.tables import dump_table, load_table
from worker.ids import time_of_id

_NOTHING = "{}"
_KEPT = frozenset(KEPT)


class _Line(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A line, as it is read."""

    id: str
    name: str
    key: str | None = None
    time: datetime | None = None
    headers: msgspec.Raw = msgspec.Raw(b"{}")
    properties: msgspec.Raw = msgspec.Raw(b"{}")
    payload: msgspec.Raw = msgspec.Raw(b"")
    payload_text: str | None = None
    #: Those of a line to publish; a command's recipient is refused.
    priority: int | None = None
    transient: bool = False
    to: str | None = None


_decoder = msgspec.json.Decoder(_Line)


def dump_line(entry: Entry) -> bytes:
    """Return the line of an event, with its line break."""
    told: dict[str, object] = {"id": entry.id, "name": entry.name}
    if entry.key is not None:
        told["key"] = entry.key
    try:
        told["time"] = moment_of(entry.time)
    except OverflowError:  # a publisher's clock: it is in the properties, if anywhere
        told.pop("time", None)
    for name, text in (("headers", entry.headers), ("properties", entry.properties)):
        if text != _NOTHING:
            told[name] = orjson.Fragment(text)
    if b"\n" in entry.body or b"\r" in entry.body:
        told["payload_text"] = entry.body.decode()
    else:
        told["payload"] = orjson.Fragment(entry.body)
    return orjson.dumps(told) + b"\n"


def load_line(line: bytes, at: int) -> Entry:
    """Return the event of a line, archived ``at``. Raises Unarchivable with what is wrong."""
    try:
        told = _decoder.decode(line)
        headers, properties = _tables(told)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise Unarchivable(f"no archived event: {error}") from None
    if told.to is not None:
        raise Unarchivable(f"a command to {told.to!r}: only events are archived")
    for what, text in (("its id", told.id), ("its name", told.name)):
        if not text:
            raise Unarchivable(f"{what} is empty")
        check_text(text, what)
    check_text(told.key or "", "its key")
    body = bytes(told.payload)
    if bool(body) is (told.payload_text is not None):
        raise Unarchivable("it has either a payload or a payload_text")
    body = body or str(told.payload_text).encode()
    check_body(body)
    moment = told.time or time_of_id(told.id)
    if moment is not None and moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    time = at if moment is None else microseconds(moment)
    return Entry(told.id, told.name, told.key, time, headers, properties, body, at=at)


def _tables(told: _Line) -> tuple[str, str]:
    """Return headers and properties as the archive keeps them.

    Raises ValueError for what are none, Unarchivable for what no broker would take.
    """
    headers, properties = (
        load_table(bytes(text).decode()) for text in (told.headers, told.properties)
    )
    if not headers and not properties:
        return _NOTHING, _NOTHING
    headers = kept(headers)
    if not _KEPT.issuperset(properties):
        properties = {n: value for n, value in properties.items() if n in _KEPT}
    try:
        wire.check(properties, headers)
    except ValueError as error:
        raise Unarchivable(f"it could never be sent: {error}") from None
    return dump_table(headers), dump_table(properties)
