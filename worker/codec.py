"""Between the wire and :class:`~worker.message.Message`: nothing but a message or a dead letter.

Reading never raises on what a publisher sent: every kind of bad input comes back as a
:class:`~worker.outcome.DeadLetter` with its reason in plain words. The payload itself is decoded
later, by :mod:`worker.payload`, when it is known which handler wants it as what; only where an
identity lies in the body is the body parsed here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import orjson

from worker.headers import check_headers
from worker.ids import time_of_id
from worker.message import (
    KEY_HEADER,
    TIMESTAMP_HEADER,
    UNDECODABLE,
    Command,
    Event,
    Message,
    Outgoing,
    Relayed,
    key_of,
    schema_of,
)
from worker.outcome import DeadLetter
from worker.payload import to_json
from worker.revisions import REVISION_HEADER, revision_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from worker.config import Settings
    from worker.context import Context

CAUSATION_HEADER = "qw-causation-id"
PERSISTENT, TRANSIENT = 2, 1

_JSON = "application/json"
_CLOUDEVENT = "application/cloudevents+json"
#: Headers that mean something where a message is, and something else where its child goes.
_LOCAL_HEADERS = ("CC", "BCC", "x-death", "x-delivery-count")
_CHARSETS = ("", "utf-8", "utf8", "us-ascii", "ascii", "identity", "binary", "8bit")
#: Longest id, name and key that are taken: they become log fields, lanes and store keys.
_MAX_IDENTITY = 1024


class _CloudEvent(msgspec.Struct):
    """The part of a CloudEvent (1.0, structured mode) that the runtime needs."""

    specversion: str
    id: str
    type: str
    source: str = ""
    time: datetime | None = None
    partitionkey: str | None = None
    data: msgspec.Raw = msgspec.Raw(b"null")
    data_base64: bytes | None = None


_cloudevent_decoder = msgspec.json.Decoder(_CloudEvent)


class _Bad(Exception):
    """The message cannot be one; the text becomes the reason of its dead letter."""


class _Read(NamedTuple):
    """What the envelope said."""

    id: str
    name: str
    key: str | None
    payload: bytes
    time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Codec:
    """Reads and writes the wire format by the settings of one service. Free of state."""

    service: str
    max_bytes: int
    id_from: str
    name_from: str
    key_from: str
    events_exchange: str
    commands_exchange: str
    event_format: str
    #: Where id, name and key lie, taken apart.
    _places: tuple[tuple[str, str], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Take apart once what every message needs."""
        apart = (where.partition(":") for where in (self.id_from, self.name_from, self.key_from))
        object.__setattr__(self, "_places", tuple((place, what) for place, _, what in apart))

    @classmethod
    def of(cls, service: str, settings: Settings) -> Codec:
        """Return the codec of ``service``."""
        return cls(
            service=service,
            max_bytes=settings.max_message_bytes,
            id_from=settings.id_from,
            name_from=settings.name_from,
            key_from=settings.key_from,
            events_exchange=settings.events_exchange,
            commands_exchange=settings.commands_exchange,
            event_format=settings.event_format,
        )

    def decode(
        self,
        body: bytes,
        properties: Mapping[str, Any],
        routing_key: str = "",
        *,
        redelivered: bool = False,
        shard: int = 0,
    ) -> Message | DeadLetter:
        """Return the message, or why it cannot be one."""
        try:
            media = _media_type(properties)
            self._check_transport(body, properties, media)
            headers = properties.get("application_headers")
            if not isinstance(headers, dict):
                headers = {}
            if media == _CLOUDEVENT:
                read = self._read_cloudevent(body, headers)
            else:
                read = self._read_plain(body, properties, headers, routing_key, self._places)
            _check_identity(read)
        except _Bad as bad:
            return DeadLetter(str(bad))
        message_id, name, key, payload, moment = read
        if not key or key == message_id:
            key = None
        message = Message(message_id, name, key, payload, headers, properties, redelivered, shard)
        message.time = moment
        return message

    def name_of(self, body: bytes, properties: Mapping[str, Any], routing_key: str) -> str | None:
        """Return the name of what may be no message otherwise; None where none is found."""
        headers = properties.get("application_headers") or {}
        body = body if len(body) <= self.max_bytes else b""  # it must not be looked into
        try:
            if _media_type(properties) == _CLOUDEVENT:
                return self._read_cloudevent(body, headers).name
            name_alone = self._places[1:2] * 3
            return self._read_plain(body, properties, headers, routing_key, name_alone).name
        except _Bad:
            return None

    def _check_transport(self, body: bytes, properties: Mapping[str, Any], media: str) -> None:
        """Refuse what must not even be looked into."""
        if len(body) > self.max_bytes:
            raise _Bad(f"the body has {len(body)} bytes; at most {self.max_bytes} are taken")
        if UNDECODABLE in properties:
            raise _Bad(f"its AMQP properties cannot be decoded: {properties[UNDECODABLE]}")
        if media is not _JSON and media and not media.endswith(("/json", "+json")):
            raise _Bad(f"the content type {_short(properties['content_type'])} is not JSON")
        encoding = properties.get("content_encoding")
        if encoding and encoding != "utf-8" and str(encoding).lower() not in _CHARSETS:
            raise _Bad(f"the content encoding {_short(encoding)} is not understood")

    def _read_plain(
        self,
        body: bytes,
        properties: Mapping[str, Any],
        headers: Mapping[str, Any],
        routing_key: str,
        places: tuple[tuple[str, str], ...],
    ) -> _Read:
        """Find the identity where the settings say that it lies."""
        found: list[Any] = []
        for place, what in places:
            if place == "property":
                found.append(properties.get(what))
            elif place == "header":
                found.append(headers.get(what))
            elif place == "routing-key":
                found.append(routing_key)
            elif place == "body-hash":
                found.append(blake2b(body, digest_size=16).hexdigest())
            else:
                found.append(_dig(body, what))
        message_id, name, key = found
        if not isinstance(message_id, str) or not message_id:
            raise _Bad(_missing("id", self.id_from, message_id))
        if not isinstance(name, str) or not name:
            raise _Bad(_missing("name", self.name_from, name))
        if key is not None and not isinstance(key, str):
            if not isinstance(key, int | float | Decimal) or isinstance(key, bool):
                raise _Bad(f"the key ({self.key_from}) is {_short(key)}; it must be a text")
            key = str(key)
        return _Read(message_id, name, key, body)

    def _read_cloudevent(self, body: bytes, headers: Mapping[str, Any]) -> _Read:
        try:
            event = _cloudevent_decoder.decode(body)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise _Bad(f"not a CloudEvent in structured mode: {error}") from None
        if event.specversion != "1.0":
            raise _Bad(f"CloudEvents {_short(event.specversion)} is not understood; 1.0 is")
        if not event.id or not event.type:
            raise _Bad("a CloudEvent needs an id and a type that are not empty")
        payload = bytes(event.data) if event.data_base64 is None else event.data_base64
        key = event.partitionkey or headers.get(KEY_HEADER)
        key = key if isinstance(key, str) else None
        return _Read(event.id, event.type, key, payload, event.time)

    def encode(  # noqa: PLR0913 - the facts of a message
        self,
        event: Event | Command,
        *,
        message_id: str | None = None,
        key: str | None = None,
        correlation_id: str | None = None,
        causation_id: str | None = None,
        headers: Mapping[str, Any] | None = None,
        priority: int | None = None,
        transient: bool = False,
    ) -> Outgoing:
        """Return ``event`` ready to be sent. Raises TypeError or ValueError for what cannot be.

        ``key`` stands for its own.
        """
        if isinstance(event, type):
            raise TypeError(f"{event.__qualname__} is a class; publish an instance of it")
        schema = schema_of(event)
        if schema is None:
            raise TypeError(
                f"{type(event).__qualname__} is not an Event or a Command; publish an instance of"
                " a class that derives from one of them"
            )
        message_id = message_id or event.event_id
        key = key or key_of(event)
        body = to_json({name: getattr(event, name) for name in schema.fields})
        if schema.revision is not None and (revision := revision_of(event)) is not None:
            headers = {**(headers or {}), REVISION_HEADER: revision}
        return self.pack(
            schema.name,
            body,
            message_id=message_id,
            key=key,
            to=schema.to,
            timestamp=event.timestamp,
            correlation_id=correlation_id,
            causation_id=causation_id,
            headers=headers,
            priority=priority,
            transient=transient,
        )

    def pack(  # noqa: PLR0913 - the facts of a message
        self,
        name: str,
        body: bytes,
        *,
        message_id: str,
        key: str | None = None,
        to: str | None = None,
        timestamp: datetime | None = None,
        correlation_id: str | None = None,
        causation_id: str | None = None,
        headers: Mapping[str, Any] | None = None,
        priority: int | None = None,
        transient: bool = False,
    ) -> Outgoing:
        """Return a payload that is JSON already, ready to be sent."""
        moment = timestamp or datetime.now(UTC)
        extra = dict(headers) if headers else {}
        try:
            if extra:
                check_headers(extra)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: {error}") from None
        # The id stands in for a missing key, so that keyless events spread over the shards.
        extra[KEY_HEADER] = message_id if key is None else key
        if causation_id:
            extra[CAUSATION_HEADER] = causation_id
        if timestamp is not None and timestamp != time_of_id(message_id):
            extra[TIMESTAMP_HEADER] = timestamp.isoformat()  # the property has whole seconds
        content_type = _JSON
        if self.event_format == "cloudevents":
            content_type = _CLOUDEVENT
            body = self._wrap(name, body, message_id, key, moment)
        if len(body) > self.max_bytes:
            raise ValueError(
                f"{name}: the body has {len(body)} bytes; consumers take {self.max_bytes} at most"
                " (max_message_bytes)"
            )
        properties = {
            "message_id": message_id,
            "type": name,
            "timestamp": int(moment.timestamp()),
            "app_id": self.service,
            "correlation_id": correlation_id or message_id,
            "content_type": content_type,
            "content_encoding": "utf-8",
            "delivery_mode": TRANSIENT if transient else PERSISTENT,
        }
        if priority is not None:
            properties["priority"] = priority
        if to is None:
            return Outgoing(self.events_exchange, name, body, message_id, properties, extra)
        return Outgoing(
            self.commands_exchange, to, body, message_id, properties, extra, mandatory=True
        )

    def child(self, event: Event | Command | Relayed, parent: Context, message_id: str) -> Outgoing:
        """Return ``event`` as a child of the message that ``parent`` is the context of.

        A plain payload keeps the time of that message: it tells of the same occurrence.
        """
        said = event if isinstance(event, Relayed) else Relayed(event)
        given = (said.headers or {}).items()
        headers = {n: v for n, v in given if not n.startswith("qw-") and n not in _LOCAL_HEADERS}
        if (trace := parent.headers.get("traceparent")) is not None:
            headers.setdefault("traceparent", trace)
        facts: dict[str, Any] = {
            "message_id": message_id,
            "key": said.key,
            "correlation_id": parent.correlation_id,
            "causation_id": parent.message_id,
            "headers": headers,
        }
        if said.name is None:
            return self.encode(said.payload, **facts)
        if schema_of(said.payload) is not None:
            raise TypeError(
                f"{type(said.payload).__qualname__} has a name, and is to be published as"
                f" {said.name!r}"
            )
        body = to_json(said.payload)
        return self.pack(said.name, body, timestamp=parent.timestamp, **facts)

    def _wrap(
        self, name: str, body: bytes, message_id: str, key: str | None, moment: datetime
    ) -> bytes:
        envelope: dict[str, Any] = {
            "specversion": "1.0",
            "id": message_id,
            "type": name,
            "source": self.service,
            "time": moment,
            "datacontenttype": _JSON,
            "data": orjson.Fragment(body),
        }
        if key is not None:
            envelope["partitionkey"] = key
        return to_json(envelope)


def _media_type(properties: Mapping[str, Any]) -> str:
    kind = properties.get("content_type")
    if kind is None or kind == _JSON:
        return _JSON
    return str(kind).split(";", 1)[0].strip().lower()


def _dig(body: bytes, path: str) -> Any:
    """Return what lies at ``path`` in the body; None where nothing does."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise _Bad(f"the body is not JSON: {error}") from None
    for step in path.split("."):
        value = value.get(step) if isinstance(value, dict) else None
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _check_identity(read: _Read) -> None:
    """Bound what becomes log fields, lanes and store keys."""
    if max(len(read.id), len(read.name), len(read.key or "")) > _MAX_IDENTITY:
        raise _Bad(f"its id, name or key is longer than {_MAX_IDENTITY} characters")


def _missing(what: str, where: str, found: object) -> str:
    if found is None or found == "":
        return f"it has no {what} ({where})"
    return f"its {what} ({where}) is {_short(found)}; it must be a text"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."  # noqa: PLR2004 - a line of a reason
