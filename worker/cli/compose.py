"""From what a user asks to publish to the message: checked against the app, where there is one."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, get_type_hints

import msgspec
import orjson

from worker.cli.events import event_classes
from worker.config import mask_url
from worker.errors import ConfigurationError, UsageError
from worker.ids import new_id
from worker.message import Message, key_of, schema_of
from worker.names import check_name
from worker.payload import Decoder, Unfit, decoder_for
from worker.revisions import REVISION_HEADER, revision_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from worker.app import App
    from worker.cli.events import EventClass
    from worker.codec import Codec
    from worker.message import Outgoing

_fields_sent = msgspec.json.Decoder(dict[str, msgspec.Raw])
#: The id travels in an AMQP short string.
_MAX_ID_BYTES = 255
_MAX_KEY = 1024

#: What to tell of a message that has no key.
KEYLESS = "no key, so nothing orders it; say --key, or --app, whose class knows it"


class WrongMessage(UsageError):
    """What was asked for cannot be published. The text does not say where it was asked for."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A message to publish, as its user described it. ``payload`` is JSON."""

    name: str
    payload: bytes = b"{}"
    key: str | None = None
    id: str | None = None
    to: str | None = None
    headers: Mapping[str, Any] = field(default_factory=dict)
    priority: int | None = None
    transient: bool = False
    #: The fields that were given as bare texts: what a class wants as a number, say, is one.
    texts: frozenset[str] = frozenset()


class Composer:
    """Makes messages for one publisher.

    With an ``app`` every name must be one that it knows, the payload must fit the class of that
    name, and the class gives the key and the recipient.
    """

    def __init__(self, codec: Codec, app: App | None, broker: str) -> None:
        self._codec = codec
        self._broker = mask_url(broker)
        self._app = app
        self._classes = event_classes() if app is not None else {}
        self._decoders: dict[str, Decoder] = {}
        #: How many had a field that its class does not know, by event and field.
        self._strange: Counter[tuple[str, str]] = Counter()
        #: How many had no key, where no app could tell whether that was meant.
        self.keyless = 0

    def compose(self, wanted: Wanted) -> Outgoing:
        """Return the message. Raises WrongMessage."""
        message_id = wanted.id or new_id()
        key, to = wanted.key, wanted.to
        self._check(wanted, message_id)
        kind, headers = self._classes.get(wanted.name), wanted.headers
        if kind is not None:
            to = _recipient(kind, to)
            wanted = replace(wanted, payload=_as_declared(kind, wanted))
            derived, revision = self._key_and_revision(kind, wanted, message_id)
            key = derived if key is None else key
            if revision is not None:
                headers = _with_revision(wanted, revision)
        elif self._app is not None and not self._app.route(wanted.name):
            raise WrongMessage(f"{wanted.name!r}: {self._unknown(wanted.name)}")
        try:
            outgoing = self._codec.pack(
                wanted.name,
                wanted.payload,
                message_id=message_id,
                key=key,
                to=to,
                headers=headers,
                priority=wanted.priority,
                transient=wanted.transient,
            )
        except ValueError as error:
            raise WrongMessage(str(error)) from None
        self.keyless += key is None and self._app is None
        # Events too, so that their publisher can be told that nobody observes them yet.
        outgoing.mandatory = True
        return outgoing

    @property
    def unheard(self) -> str:
        """What to tell of an event that no queue is bound for."""
        return (
            f"no service observes it on {self._broker}, so it went nowhere: start the service there"
            " once (or 'qworker topology --declare'), which makes its queues, and publish it again;"
            " or say another --broker"
        )

    def strange(self) -> list[str]:
        """Return what to tell of fields that no class has: a line for each event and field.

        They are sent all the same: a class may have them in another version of the code.
        """
        told = []
        for (name, field_), times in self._strange.items():
            near = get_close_matches(field_, _fields(self._classes[name]), n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            number = "" if times == 1 else f" ({times} times)"
            kind = self._classes[name].__name__
            told.append(
                f"{name}: its class {kind} has no field {field_!r}, so handlers that take it as"
                f" {kind} do not get it{number}{hint}"
            )
        return told

    def is_event(self, outgoing: Outgoing) -> bool:
        """Tell whether a message is an event, which may have no observers."""
        return outgoing.exchange == self._codec.events_exchange

    def _check(self, wanted: Wanted, message_id: str) -> None:
        try:
            check_name(wanted.name, "the name")
            if wanted.to is not None:
                check_name(wanted.to, "the recipient")
        except ConfigurationError as error:
            raise WrongMessage(str(error)) from None
        if len(message_id.encode("utf-8", "surrogatepass")) > _MAX_ID_BYTES:
            raise WrongMessage(f"the id is longer than {_MAX_ID_BYTES} bytes")
        if wanted.key is not None and not 0 < len(wanted.key) <= _MAX_KEY:
            raise WrongMessage(f"a key has 1 to {_MAX_KEY} characters")

    def _key_and_revision(
        self, kind: EventClass, wanted: Wanted, message_id: str
    ) -> tuple[str | None, int | None]:
        """Read the payload as ``kind``, as its consumers will; return what the class says of it."""
        decode = self._decoders.get(wanted.name)
        if decode is None:
            decode = self._decoders[wanted.name] = decoder_for(kind)
        try:
            event = decode(Message(message_id, wanted.name, None, wanted.payload, {}, {}))
        except Unfit as error:
            hint = ""
            if wanted.texts and "got `str`" in str(error):
                hint = " (FIELD=TEXT is text; a number, say, is FIELD:=JSON, as in amount:=10)"
            raise WrongMessage(f"{wanted.name}: {error}{hint}") from None
        sent: dict[str, msgspec.Raw] = _fields_sent.decode(wanted.payload)
        self._strange.update((wanted.name, each) for each in sent.keys() - _fields(kind))
        try:
            key = key_of(event)
        except Exception as error:
            raise WrongMessage(f"{wanted.name}: its key: {error}") from error
        try:
            return key, revision_of(event)
        except ValueError as error:  # it names the event
            raise WrongMessage(str(error)) from error
        except Exception as error:
            raise WrongMessage(f"{wanted.name}: its revision: {error}") from error

    def _unknown(self, name: str) -> str:
        assert self._app is not None  # noqa: S101 - the caller looked
        known = [*self._classes, *(h.pattern for h in self._app.handlers.values())]
        near = get_close_matches(name, known, n=1)
        if near:
            return f"the app has no such event or command; did you mean {near[0]!r}?"
        return f"the app has no such event or command; it has {', '.join(sorted(set(known)))}"


def _fields(kind: EventClass) -> set[str]:
    schema = schema_of(kind)
    assert schema is not None  # noqa: S101 - every event class has one
    return {*schema.fields}


def _as_declared(kind: EventClass, wanted: Wanted) -> bytes:
    """Return the payload, with each bare text that is no such text to its class read as JSON.

    A number stays as it was written. What is neither is left, to be told of.
    """
    if not wanted.texts:
        return wanted.payload
    try:
        hints = get_type_hints(kind, include_extras=True)
    except NameError:  # its decoder tells
        return wanted.payload
    sent: dict[str, msgspec.Raw] = _fields_sent.decode(wanted.payload)
    parts = []
    for name, raw in sent.items():
        shown = bytes(raw)
        if name in wanted.texts and name in hints and not _fits(shown, hints[name]):
            bare = str(orjson.loads(shown)).encode()
            shown = bare if _fits(bare, hints[name]) else shown
        parts.append(orjson.dumps(name) + b": " + shown)
    return b"{" + b", ".join(parts) + b"}"


def _fits(text: bytes, hint: Any) -> bool:
    """Tell whether JSON is of a type. One that cannot be read from JSON the decoder tells of."""
    try:
        msgspec.json.decode(text, type=hint)
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError):
        return False
    return True


def _with_revision(wanted: Wanted, revision: int) -> dict[str, Any]:
    """Return the headers with what the class says, as wherever the event is published."""
    asked = wanted.headers.get(REVISION_HEADER)
    if asked is not None and str(asked) != str(revision):
        raise WrongMessage(
            f"{wanted.name}: its class says revision {revision}, and the header {REVISION_HEADER}"
            f" {asked!r}: leave that out"
        )
    return {**wanted.headers, REVISION_HEADER: revision}


def _recipient(kind: EventClass, asked: str | None) -> str | None:
    schema = schema_of(kind)
    assert schema is not None  # noqa: S101 - every event class has one
    if asked in (None, schema.to):
        return schema.to
    if schema.to is None:
        raise WrongMessage(f"{schema.name} is an event: it is not sent to {asked!r} alone")
    raise WrongMessage(f"{schema.name} is a command to {schema.to!r}, not to {asked!r}")
