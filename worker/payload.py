"""Payloads: from a typed value to JSON, and from JSON to the type that a handler asked for.

Decoding validates (msgspec): what does not fit raises :class:`Unfit` with the path of the bad
field. Event and command classes, dataclasses, attrs classes, msgspec Structs, TypedDicts and
pydantic models all serve; without a type the handler gets the plain value.
"""

from __future__ import annotations

import dataclasses
import typing
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec
import orjson

from worker.errors import ConfigurationError
from worker.message import schema_of

if TYPE_CHECKING:
    from worker.message import Message

#: From a message to what its handler gets. Raises Unfit.
Decoder = Callable[["Message"], Any]


class Unfit(Exception):
    """The payload does not fit the type. The text says which field, and why."""


def to_json(value: object, *, canonical: bool = False) -> bytes:
    """Return ``value`` as JSON. Raises TypeError or ValueError, saying what it cannot encode.

    ``canonical``: values that are equal give the same bytes, in whatever order their keys are.
    """
    order = orjson.OPT_SORT_KEYS if canonical else 0
    try:
        return orjson.dumps(value, default=_builtin, option=orjson.OPT_NON_STR_KEYS | order)
    except orjson.JSONEncodeError as error:
        raise TypeError(f"cannot be sent as JSON: {error.__cause__ or error}") from None


def _builtin(value: object) -> object:
    """Turn what orjson does not know into what it knows."""
    match value:
        case Decimal():
            return str(value)
        case set() | frozenset():
            # Sorted, so that a second execution publishes the same bytes: sets have no order.
            return sorted(value, key=to_json)
        case bytes() | bytearray() | memoryview():
            return b64encode(value).decode()
        case timedelta():
            return msgspec.to_builtins(value)
    dump = getattr(value, "model_dump", None)  # pydantic
    if callable(dump):
        return dump(mode="json")
    try:
        return msgspec.to_builtins(value, order="deterministic")  # Structs, attrs classes
    except TypeError:
        raise TypeError(f"{type(value).__qualname__} is not JSON") from None


def fields_of(payload: object) -> Mapping[str, Any]:
    """Return what ``payload`` is sent as: the fields of an event, a mapping, any object with some.

    Raises TypeError where it has none.
    """
    if isinstance(payload, Mapping):
        return payload
    schema = schema_of(payload)
    if schema is not None and not isinstance(payload, type):
        return {name: getattr(payload, name) for name in schema.fields}
    found = orjson.loads(to_json(payload))
    if not isinstance(found, dict):
        raise TypeError(f"a payload has fields; {type(payload).__qualname__} has none")
    return found


def names_in(kind: Any) -> Sequence[str] | None:
    """Return the fields that a payload of this type has when it is decoded; None: nobody knows.

    A dataclass, a Struct, an attrs class, a TypedDict or a model that lets no others pass.
    """
    if typing.is_typeddict(kind):
        return [*typing.get_type_hints(kind)]
    if (model := getattr(kind, "model_fields", None)) is not None:
        return None if kind.model_config.get("extra") == "allow" else [*model]
    if dataclasses.is_dataclass(kind):
        return [field.name for field in dataclasses.fields(kind)]
    if (attributes := getattr(kind, "__attrs_attrs__", None)) is not None:
        return [each.name for each in attributes]
    return getattr(kind, "__struct_fields__", None)


def decoder_for(kind: type[Any] | None) -> Decoder:
    """Return the function that decodes a message's payload into ``kind``.

    Raises ConfigurationError where msgspec cannot build such a type from JSON.
    """
    if kind is None or kind is dict:
        return _decode_plain
    if schema_of(kind) is not None:
        return _event_decoder(kind)
    if callable(validate := getattr(kind, "model_validate_json", None)):
        return _pydantic_decoder(validate)
    decode = _decode_function(kind, kind)

    def decode_typed(message: Message) -> Any:
        return decode(message.body)

    return decode_typed


def _decode_plain(message: Message) -> Any:
    try:
        return orjson.loads(message.body)
    except orjson.JSONDecodeError as error:
        raise Unfit(f"the body is not JSON: {error}") from None


def _pydantic_decoder(validate: Callable[[bytes], Any]) -> Decoder:
    def decode(message: Message) -> Any:
        try:
            return validate(message.body)
        except (ValueError, RecursionError) as error:
            raise Unfit(f"the payload does not fit: {error}") from None

    return decode


def _decode_function(kind: Any, shown: Any) -> Callable[[bytes], Any]:
    try:
        decode = msgspec.json.Decoder(kind).decode
    except (TypeError, NameError) as error:
        name = getattr(shown, "__qualname__", shown)
        raise ConfigurationError(f"{name} cannot be read from JSON: {error}") from None

    def checked(body: bytes) -> Any:
        try:
            return decode(body)
        except msgspec.ValidationError as error:
            raise Unfit(f"the payload does not fit: {error}") from None
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise Unfit(f"the body is not JSON: {error}") from None

    return checked


def _event_decoder(kind: type[Any]) -> Decoder:
    """Decode into an event class: its fields from the body, id and time from the envelope."""
    schema = schema_of(kind)
    assert schema is not None  # noqa: S101 - the caller looked
    try:
        hints = typing.get_type_hints(kind, include_extras=True)
    except NameError as error:
        raise ConfigurationError(f"{kind.__qualname__}: an annotation names {error}") from None
    own = [spec for spec in dataclasses.fields(kind) if spec.name in schema.fields]
    payload_fields = [(f.name, hints[f.name], _payload_field(f)) for f in own if f.init]
    made_here = {
        f.name: f.default_factory
        for f in own
        if not f.init and f.default_factory is not dataclasses.MISSING
    }
    payload = dataclasses.make_dataclass(f"{kind.__name__}Payload", payload_fields)
    decode = _decode_function(payload, kind)
    new = object.__new__

    def decode_event(message: Message) -> Any:
        event = new(kind)
        attributes = event.__dict__
        attributes.update(decode(message.body).__dict__)
        attributes["event_id"] = message.id
        for name, make in made_here.items():
            attributes[name] = make()
        if (moment := message.timestamp) is not None:
            attributes["timestamp"] = moment
        try:
            event.__post_init__()
        except (ValueError, TypeError) as error:
            raise Unfit(f"the payload does not fit: {error}") from None
        return event

    return decode_event


def _payload_field(spec: dataclasses.Field[Any]) -> Any:
    """Return a field like ``spec``, to be given by name."""
    if spec.default is not dataclasses.MISSING:
        return dataclasses.field(kw_only=True, default=spec.default)
    if spec.default_factory is not dataclasses.MISSING:
        return dataclasses.field(kw_only=True, default_factory=spec.default_factory)
    return dataclasses.field(kw_only=True)
