"""What travels: events and commands as classes, the message as received, the message to send."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar, dataclass_transform

from worker.errors import ConfigurationError
from worker.ids import new_id, time_of_id
from worker.names import check_name

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Names that the base classes use; a payload field cannot have them.
_RESERVED = ("event_id", "timestamp", "name")

#: Header that carries what orders a message.
KEY_HEADER = "qw-key"
#: The routing key that a message was published with, where its name lies there and it was moved.
ROUTING_KEY_HEADER = "qw-routing-key"
#: Header that carries the time of an event where neither its id nor the property can.
TIMESTAMP_HEADER = "qw-timestamp"
#: Headers by which messages of the runtime's own are known where they come by the default exchange:
#: a barrier (``worker.barrier``), the marker of a queue that ends (``worker.seal``), and that of
#: parked messages that were sent back (``worker.parking``), which also comes by a service's front.
BARRIER_HEADER = "qw-barrier"
GENERATION_HEADER = "qw-generation"
UNPARK_HEADER = "qw-unpark-upto"
#: How the names of its own messages begin.
_OF_THE_RUNTIME = "qw."
#: The one property of a message whose AMQP properties could not be decoded; its value says why.
#: No publisher can set it: AMQP has a fixed list of properties.
UNDECODABLE = "qw-undecodable"

KeySource = str | Callable[[Any], str] | None
RevisionSource = str | Callable[[Any], int | None] | None


@dataclass(frozen=True, slots=True)
class Schema:
    """What the runtime knows of an event or command class."""

    name: str
    #: The recipient service of a command; None for an event.
    to: str | None
    key: KeySource
    #: The fields of the payload, in order.
    fields: tuple[str, ...]
    revision: RevisionSource = None


#: Stands for "take it from the id" until an event is made.
_UNSET = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, kw_only=True)
class _Published:
    """The part that events and commands share."""

    #: Unique: UUIDv7 text, in time order; of what a handler publishes derived from its message's.
    event_id: str = ""
    #: When it happened: aware, UTC.
    timestamp: datetime = _UNSET

    #: The class's name on the wire.
    name: ClassVar[str] = ""
    __schema__: ClassVar[Schema | None] = None

    def __init_subclass__(cls, /, **others: object) -> None:
        """Hand what is not of an event to the classes behind; tell of what none of them takes."""
        try:
            super().__init_subclass__(**others)
        except TypeError as error:
            if not others:
                raise
            raise ConfigurationError(
                f"class {cls.__qualname__}: {', '.join(others)}= is not known; an event takes"
                " name=, key= and revision=, a command to= as well"
            ) from error

    def __post_init__(self) -> None:
        """Fill in id and time from one reading of the clock."""
        if not self.event_id:
            object.__setattr__(self, "event_id", new_id())
        if self.timestamp is _UNSET:
            moment = time_of_id(self.event_id) or datetime.now(UTC)
            object.__setattr__(self, "timestamp", moment)
        elif self.timestamp.tzinfo is None:
            raise ValueError(f"timestamp {self.timestamp!r} has no time zone; use UTC")
        else:
            object.__setattr__(self, "timestamp", self.timestamp.astimezone(UTC))


def _define(cls: type[_Published], name: str | None, *, to: str | None = None, **of: Any) -> None:
    """Make ``cls`` a frozen keyword-only dataclass; note its schema, with key and revision."""
    what = f"class {cls.__qualname__}"
    for reserved in _RESERVED:
        if reserved in inspect.get_annotations(cls):
            raise ConfigurationError(
                f"{what}: the field {reserved!r} is the base class's own; choose another name"
            )
    cls.name = check_name(cls.__qualname__ if name is None else name, what)
    user_post_init = cls.__dict__.get("__post_init__")
    if user_post_init is not None:

        def __post_init__(self: Any) -> None:  # noqa: N807 - becomes a method
            _Published.__post_init__(self)
            user_post_init(self)

        cls.__post_init__ = __post_init__  # type: ignore[method-assign]  # the class is being made
    dataclass(frozen=True, kw_only=True)(cls)
    names = tuple(f.name for f in dataclasses.fields(cls) if f.name not in _RESERVED)
    for source, named in of.items():
        if isinstance(named, str) and named not in names:
            raise ConfigurationError(
                f"{what}: {source}={named!r} is none of its fields"
                f" ({', '.join(names) or 'it has none'})"
            )
    if of["revision"] is not None and of["key"] is None:
        raise ConfigurationError(f"{what}: revision= needs key=, which tells of what it is one")
    cls.__schema__ = Schema(name=cls.name, to=to, fields=names, **of)


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Event(_Published):
    """Something that happened, for anyone to observe.

    ::

        class UserDeposited(Event, name="user.deposited", key="user_id"):
            user_id: str
            amount: Decimal

    A subclass becomes a frozen keyword-only dataclass. ``name`` is its name on the wire (the
    class's own where it is left out); ``key`` the field, or a function of the event, whose
    events must be handled in order; ``revision`` the field, or a function, with the number of the
    state that it tells of. Raises ConfigurationError for what cannot be meant.
    """

    def __init_subclass__(
        cls,
        /,
        name: str | None = None,
        key: KeySource = None,
        revision: RevisionSource = None,
        **kwargs: object,
    ) -> None:
        """Define the event."""
        super().__init_subclass__(**kwargs)
        _define(cls, name, key=key, revision=revision)


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Command(_Published):
    """Something to be done by one recipient, the service ``to``; else like :class:`Event`.

    A command that no queue would receive is an error for its publisher.
    """

    def __init_subclass__(
        cls,
        /,
        to: str,
        name: str | None = None,
        key: KeySource = None,
        revision: RevisionSource = None,
        **kwargs: object,
    ) -> None:
        """Define the command."""
        super().__init_subclass__(**kwargs)
        check_name(to, f"class {cls.__qualname__}: to={to!r}")
        _define(cls, name, to=to, key=key, revision=revision)


def schema_of(kind: object) -> Schema | None:
    """Return the schema of an event or command (class or instance); None for anything else."""
    schema = getattr(kind, "__schema__", None)
    return schema if isinstance(schema, Schema) else None


def key_of(event: Event | Command) -> str | None:
    """Return the key that orders ``event``; None where order is not promised.

    Raises ValueError where the class names a key and the event has none to give.
    """
    schema = schema_of(event)
    if schema is None or schema.key is None:
        return None
    value = schema.key(event) if callable(schema.key) else getattr(event, schema.key)
    if value is None or value == "":
        raise ValueError(f"{schema.name}: its key is {value!r}; a key orders events, so it is text")
    return str(value)


@dataclass(frozen=True, slots=True)
class Relayed:
    """What to publish, for those who say more of it than its payload. See ``App.relay``.

    ``payload`` is an event, a command, or the fields of one: a mapping, or an object that has them.
    Of ``headers`` those of the runtime and of the broker are left out, so that those of the message
    received can be handed on. Raises TypeError for a key or a name that is no text.
    """

    payload: Any
    #: What orders it; None: its class says, else it is the key of the message that it came of.
    key: str | None = None
    #: None: as the class, or the relay, says.
    name: str | None = None
    headers: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        """Refuse what would be found out far from here."""
        texts: dict[str, object] = {"key": self.key, "name": self.name}
        for what, value in texts.items():
            if value is not None and not (isinstance(value, str) and value):
                raise TypeError(f"Relayed({what}={value!r}): a text, or None")


@dataclass(slots=True)
class Message:
    """A message as received: its identity, and the body untouched.

    Treat it as frozen (it is not declared so because one is made for every delivery, and frozen
    dataclasses are slow to make).
    """

    id: str
    name: str
    #: What orders it; None: nothing does.
    key: str | None
    #: The payload alone, as bytes of JSON.
    body: bytes
    headers: Mapping[str, Any]
    #: AMQP basic properties by py-amqp's names.
    properties: Mapping[str, Any]
    redelivered: bool = False
    shard: int = 0
    #: Set where the wire carries the time elsewhere than in the AMQP property.
    time: datetime | None = None
    #: What it is known by, where it is a barrier (:mod:`worker.barrier`).
    barrier: str = ""

    @property
    def timestamp(self) -> datetime | None:
        """When it was published: to the millisecond where the id is a UUIDv7 that agrees."""
        if self.time is not None:
            return self.time
        told = self.headers.get(TIMESTAMP_HEADER)
        if isinstance(told, str):
            with suppress(ValueError):
                given = datetime.fromisoformat(told)
                return given if given.tzinfo is not None else given.replace(tzinfo=UTC)
        stamp = self.properties.get("timestamp")
        if stamp is None:
            return time_of_id(self.id)
        if isinstance(stamp, datetime):
            seconds = stamp.replace(tzinfo=stamp.tzinfo or UTC)
        else:
            try:
                seconds = datetime.fromtimestamp(int(stamp), UTC)
            except (ValueError, TypeError, OverflowError, OSError):
                return None
        exact = time_of_id(self.id)
        if exact is not None and int(exact.timestamp()) == int(seconds.timestamp()):
            return exact
        return seconds


@dataclass(slots=True)
class Outgoing:
    """A message ready to be sent."""

    exchange: str
    routing_key: str
    body: bytes
    message_id: str
    properties: dict[str, Any]
    headers: dict[str, Any]
    #: Nobody to receive it is an error.
    mandatory: bool = False
    #: The content header's property flags and list, where they must leave byte for byte; they
    #: then stand for ``properties`` and ``headers``.
    raw: bytes | None = None


def disarmed(name: object, headers: Mapping[str, Any]) -> dict[str, str]:
    """Return the headers without which an event is taken for a message of the runtime's, empty.

    For somebody's event whose AMQP *type* is ``name``, and which is about to come by the default
    exchange.
    """
    if not isinstance(name, str) or not name.startswith(_OF_THE_RUNTIME):
        return {}
    return {
        each: "" for each in (BARRIER_HEADER, GENERATION_HEADER, UNPARK_HEADER) if each in headers
    }
