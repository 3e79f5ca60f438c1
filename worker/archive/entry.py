"""One archived event: what is kept of a message, and the message that it is sent as again. Pure.

All is kept that the codec finds an identity in, wherever the settings say that it lies: the body
byte for byte, headers and properties as they came. So whoever handles it again finds the same id,
name, key and payload, by the same settings. What a broker reads, or wrote, is left out: ``CC`` and
``BCC`` would copy the message to other queues. For the routing key stands the name, which is what
those read in it who read it.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import orjson

from worker.archive.tables import dump_table, load_table
from worker.message import KEY_HEADER, ROUTING_KEY_HEADER, Outgoing, disarmed
from worker.payload import to_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from worker.message import Message

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_CLOUDEVENT = "application/cloudevents+json"
#: Headers that are not kept; and how those begin that are of one way through a service (dead
#: letters, parked ones, replays) and would be taken for facts of the next one.
_LEFT_OUT = frozenset(("CC", "BCC", "x-death", "x-delivery-count", ROUTING_KEY_HEADER))
_OF_ONE_WAY = ("qw-dead-", "qw-parked-", "qw-replay")
#: Properties of a message that are its own, and not of one way through a broker.
KEPT = (
    "content_type", "content_encoding", "correlation_id", "app_id", "timestamp", "priority",
    "message_id", "type", "reply_to", "cluster_id",
)  # fmt: skip
#: What goes without saying.
_USUAL = {"content_type": "application/json", "content_encoding": "utf-8"}
_PERSISTENT = 2
#: Bytes of a property (AMQP 0-9-1, section 4.2.5.3).
_SHORT_STRING = 255


class Unarchivable(Exception):
    """The event cannot be kept; the text becomes the reason of its dead letter."""


class Entry(NamedTuple):
    """An archived event."""

    id: str
    name: str
    #: None: nothing orders it.
    key: str | None
    #: When it was published, in microseconds since 1970; where nothing tells, when it was archived.
    time: int
    #: Tables, as ``dump_table`` writes them; ``properties`` but for what goes without saying.
    headers: str
    properties: str
    #: The payload alone, byte for byte.
    body: bytes
    #: Its place in the archive, which rises; 0 while it has none. A key's events have theirs in the
    #: order in which they were consumed.
    seq: int = 0
    #: When it was archived, in microseconds since 1970.
    at: int = 0


def microseconds(moment: datetime) -> int:
    """Return an aware time as microseconds since 1970."""
    return (moment - _EPOCH) // _MICROSECOND


def moment_of(microseconds: int) -> datetime:
    """Return the time that ``microseconds`` was given."""
    return _EPOCH + microseconds * _MICROSECOND


def entry_of(message: Message, at: int) -> Entry:
    """Return what is kept of ``message``, which is archived ``at``. Raises Unarchivable."""
    for what, text in (("id", message.id), ("name", message.name), ("key", message.key or "")):
        check_text(text, f"its {what}")
    try:
        headers = kept(message.headers)
        moment = message.timestamp
        entry = Entry(
            message.id,
            message.name,
            message.key,
            at if moment is None else microseconds(moment),
            dump_table(headers),
            dump_table(_told(message)),
            bytes(message.body),
            at=at,
        )
    except ValueError as error:
        raise Unarchivable(f"its headers cannot be kept: {error}") from None
    check_body(entry.body)
    return entry


def kept(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the headers that are kept of an event."""
    return {
        name: value
        for name, value in headers.items()
        if name not in _LEFT_OUT and not name.startswith(_OF_ONE_WAY)
    }


def check_text(text: str, what: str) -> None:
    """Raise Unarchivable for what a database has no text for."""
    if "\0" in text or not _is_unicode(text):
        raise Unarchivable(f"{what} holds NUL, or is not valid Unicode: it cannot be kept")


def check_body(body: bytes) -> None:
    """Raise Unarchivable for a body that is no JSON."""
    try:
        msgspec.json.decode(body, type=msgspec.Raw)
        body.decode()  # which msgspec leaves to whoever reads it
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise Unarchivable(f"the body is not JSON: {error}") from None


def outgoing_of(entry: Entry, facts: Mapping[str, str]) -> Outgoing:
    """Return the message that an event is sent as again, with ``facts`` among its headers.

    Where it goes is for the caller to say. It must not be lost, so nobody to take it is an error.
    Raises ValueError where what is kept of it cannot be read.
    """
    headers = kept(load_table(entry.headers))  # also of archives that kept more
    if entry.key is not None:
        headers.setdefault(KEY_HEADER, entry.key)
    # It comes by the default exchange: who takes names from routing keys looks here (worker.aside).
    headers[ROUTING_KEY_HEADER] = entry.name
    headers.update(facts)
    properties: dict[str, Any] = {
        **_USUAL,
        **_identity(entry.id, entry.name),
        **load_table(entry.properties),
        "delivery_mode": _PERSISTENT,
    }
    headers.update(disarmed(properties.get("type"), headers))
    body = entry.body
    if str(properties["content_type"]).partition(";")[0].strip().lower() == _CLOUDEVENT:
        body = _wrapped(entry, str(properties.get("app_id") or "archive"))
    return Outgoing("", "", body, entry.id, properties, headers, mandatory=True)


def _told(message: Message) -> dict[str, Any]:
    """Return the properties that say something."""
    usual = {**_USUAL, **_identity(message.id, message.name)}
    properties = message.properties
    found = ((name, properties.get(name)) for name in KEPT)
    return {name: value for name, value in found if value not in (None, usual.get(name))}


def _identity(message_id: str, name: str) -> dict[str, str]:
    """Return what a message says of itself that lies nowhere else, where a property can hold it.

    What is longer lies in a header or in the body, and is found there again.
    """
    told = {"message_id": message_id, "type": name, "correlation_id": message_id}
    return {what: text for what, text in told.items() if len(text.encode()) <= _SHORT_STRING}


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _wrapped(entry: Entry, source: str) -> bytes:
    """Return a CloudEvent in structured mode; its payload keeps its bytes."""
    envelope: dict[str, Any] = {
        "specversion": "1.0",
        "id": entry.id,
        "type": entry.name,
        "source": source,
        "datacontenttype": "application/json",
        "data": orjson.Fragment(entry.body),
    }
    with suppress(OverflowError):  # a publisher's clock: it is in a header, if anywhere
        envelope["time"] = moment_of(entry.time)
    if entry.key is not None:
        envelope["partitionkey"] = entry.key
    return to_json(envelope)
