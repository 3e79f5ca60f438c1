"""Between the wire and :class:`~worker.message.Message`: nothing but a message or a dead letter.

Reading never raises on what a publisher sent: every kind of bad input comes back as a
:class:`~worker.outcome.DeadLetter` with its reason in plain words. The payload itself is decoded
later, by :mod:`worker.payload`, when it is known which handler wants it as what; only where an
identity lies in the body is the body parsed here.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import msgspec
import orjson

from worker.message import (
    KEY_HEADER,
    UNDECODABLE,
    Command,
    Context,
    Event,
    Message,
    Outgoing,
    key_of,
    schema_of,
)
from worker.outcome import DeadLetter
from worker.payload import to_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from worker.config import Settings

CAUSATION_HEADER = "qw-causation-id"
TIMESTAMP_HEADER = "qw-timestamp"
PERSISTENT, TRANSIENT = 2, 1

_JSON = "application/json"
_CLOUDEVENT = "application/cloudevents+json"
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
        if len(body) > self.max_bytes:
            return DeadLetter(f"the body has {len(body)} bytes; at most {self.max_bytes} are taken")
        if UNDECODABLE in properties:
            return DeadLetter(f"its AMQP properties cannot be decoded: {properties[UNDECODABLE]}")
        headers = properties.get("application_headers") or {}
        kind = properties.get("content_type")
        if kind != _JSON and kind is not None:
            media = str(kind).split(";", 1)[0].strip().lower()
            if media == _CLOUDEVENT:
                return self._cloudevent(body, properties, headers, redelivered, shard)
            if media and not media.endswith(("/json", "+json")):
                return DeadLetter(f"the content type {_short(kind)} is not JSON")
        encoding = properties.get("content_encoding")
        if encoding and str(encoding).lower() not in _CHARSETS:
            return DeadLetter(f"the content encoding {_short(encoding)} is not understood")
        parsed: Any = None
        if "body:" in (self.id_from[:5], self.name_from[:5], self.key_from[:5]):
            try:
                parsed = orjson.loads(body)
            except orjson.JSONDecodeError as error:
                return DeadLetter(f"the body is not JSON: {error}")
        message_id = self._find(self.id_from, body, properties, headers, routing_key, parsed)
        name = self._find(self.name_from, body, properties, headers, routing_key, parsed)
        key = self._find(self.key_from, body, properties, headers, routing_key, parsed)
        if not isinstance(message_id, str) or not message_id:
            return DeadLetter(_missing("id", self.id_from, message_id))
        if not isinstance(name, str) or not name:
            return DeadLetter(_missing("name", self.name_from, name))
        if key is not None and not isinstance(key, str):
            if isinstance(key, bool | dict | list | bytes):
                return DeadLetter(f"the key ({self.key_from}) is {_short(key)}; it must be a text")
            key = str(key)
        if len(message_id) > _MAX_IDENTITY or len(name) > _MAX_IDENTITY:
            return DeadLetter(f"its id or name is longer than {_MAX_IDENTITY} characters")
        if key is not None and len(key) > _MAX_IDENTITY:
            return DeadLetter(f"its key is longer than {_MAX_IDENTITY} characters")
        if not key or key == message_id:
            key = None
        return Message(message_id, name, key, body, headers, properties, redelivered, shard)

    def _find(  # noqa: PLR0913 - every place where an identity can lie
        self,
        where: str,
        body: bytes,
        properties: Mapping[str, Any],
        headers: Mapping[str, Any],
        routing_key: str,
        parsed: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        place, _, name = where.partition(":")
        if place == "property":
            return properties.get(name)
        if place == "header":
            return headers.get(name) if isinstance(headers, dict) else None
        if where == "routing-key":
            return routing_key
        if where == "body-hash":
            return blake2b(body, digest_size=16).hexdigest()
        value = parsed
        for step in name.split("."):
            value = value.get(step) if isinstance(value, dict) else None
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    def _cloudevent(
        self,
        body: bytes,
        properties: Mapping[str, Any],
        headers: Mapping[str, Any],
        redelivered: bool,  # noqa: FBT001
        shard: int,
    ) -> Message | DeadLetter:
        try:
            event = _cloudevent_decoder.decode(body)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            return DeadLetter(f"not a CloudEvent in structured mode: {error}")
        if event.specversion != "1.0":
            return DeadLetter(f"CloudEvents {_short(event.specversion)} is not understood; 1.0 is")
        if not event.id or not event.type:
            return DeadLetter("a CloudEvent needs an id and a type that are not empty")
        if max(len(event.id), len(event.type), len(event.partitionkey or "")) > _MAX_IDENTITY:
            return DeadLetter(f"its id, type or key is longer than {_MAX_IDENTITY} characters")
        payload = bytes(event.data) if event.data_base64 is None else event.data_base64
        key = event.partitionkey or headers.get(KEY_HEADER)
        key = key if isinstance(key, str) and key != event.id else None
        message = Message(
            event.id, event.type, key or None, payload, headers, properties, redelivered, shard
        )
        message.time = event.time
        return message

    def encode(  # noqa: PLR0913 - the facts of a message
        self,
        event: Event | Command,
        *,
        message_id: str | None = None,
        correlation_id: str | None = None,
        causation_id: str | None = None,
        headers: Mapping[str, Any] | None = None,
        priority: int | None = None,
        transient: bool = False,
    ) -> Outgoing:
        """Return ``event`` ready to be sent. Raises TypeError or ValueError for what cannot be."""
        schema = schema_of(event)
        if schema is None:
            raise TypeError(
                f"{type(event).__qualname__} is not an Event or a Command; publish an instance of"
                " a class that derives from one of them"
            )
        message_id = message_id or event.event_id
        key = key_of(event)
        body = to_json({name: getattr(event, name) for name in schema.fields})
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
        # The id stands in for a missing key, so that keyless events spread over the shards.
        extra[KEY_HEADER] = message_id if key is None else key
        if causation_id:
            extra[CAUSATION_HEADER] = causation_id
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

    def child(self, event: Event | Command, parent: Context, message_id: str) -> Outgoing:
        """Return ``event`` as a child of the message that ``parent`` is the context of."""
        inherited = {}
        if (trace := parent.headers.get("traceparent")) is not None:
            inherited["traceparent"] = trace
        return self.encode(
            event,
            message_id=message_id,
            correlation_id=parent.correlation_id,
            causation_id=parent.message_id,
            headers=inherited,
        )

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


def _missing(what: str, where: str, found: object) -> str:
    if found is None or found == "":
        return f"it has no {what} ({where})"
    return f"its {what} ({where}) is {_short(found)}; it must be a text"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."  # noqa: PLR2004 - a line of a reason
