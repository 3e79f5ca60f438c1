"""One registered handler, made out of what the user decorated; all that cannot be meant is told."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from worker.annotations import check_annotations
from worker.dedup.base import fingerprint, record_ids
from worker.errors import ConfigurationError
from worker.horizons import Times
from worker.message import Command, Event, key_of, schema_of
from worker.names import check_name
from worker.payload import Decoder, decoder_for
from worker.relaying import Relaying
from worker.relays import Step
from worker.retry import RetryPolicy
from worker.revisions import revisions_of
from worker.routing import is_pattern, matches
from worker.signature import is_async, takes_context

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.message import Message, Schema
    from worker.revisions import By, Revisions

_DEFAULT_RETRY = RetryPolicy()
#: Part the records of other things from those of ids: of values, of the last revisions of keys, of
#: waits for a revision.
_OF_VALUES, _OF_REVISIONS, _OF_WAITS = "value", "revision", "wait"


@dataclass(frozen=True, slots=True, eq=False)
class Handler:
    """One registered handler."""

    #: Unique in its app.
    name: str
    #: ``SERVICE.NAME``: its identity in the memory of ids.
    full_name: str
    #: The event name or topic pattern that it observes.
    pattern: str
    #: The function, or the class with ``handle``.
    target: Any
    is_class: bool
    is_async: bool
    takes_context: bool
    decode: Decoder
    schema: Schema | None
    retry: RetryPolicy
    #: Seconds; None: no limit.
    timeout: float | None
    record_id: Callable[[str], bytes] = field(repr=False)
    #: From a key to the place of its last revision; from a message id to the record of its wait.
    place_of: Callable[[str], bytes] = field(repr=False)
    wait_of: Callable[[str], bytes] = field(repr=False)
    #: From what it gets to what orders a message that came without a key; None: nothing there.
    key_by: Callable[[Any], str | None] | None = field(default=None, repr=False)
    #: From a message to the record and fingerprint of the value that stands for its id, and raises
    #: where there is none to find; None: the id itself.
    identify: Callable[[Message], tuple[bytes, bytes]] | None = field(default=None, repr=False)
    #: What it returns is published.
    relay: Relaying | None = field(default=None, repr=False)
    #: How it judges messages by their revisions; None: it does not.
    revisions: Revisions | None = None

    @property
    def is_command(self) -> bool:
        """Whether it takes a command, which comes by the commands exchange."""
        return self.schema is not None and self.schema.to is not None

    @property
    def times(self) -> Times:
        """The seconds that it may take."""
        gap = None if self.revisions is None else self.revisions.longest
        return Times(self.full_name, self.timeout, self.retry.longest(), gap)

    def matches(self, name: str) -> bool:
        """Tell whether it observes messages of ``name``."""
        return self.pattern == name or (is_pattern(self.pattern) and matches(self.pattern, name))


def make_handler(  # noqa: PLR0913 - the facts of a handler
    service: str,
    what: type[Event | Command] | str,
    target: Any,
    *,
    method: str,
    kind: Any = None,
    name: str | None = None,
    retry: RetryPolicy | None = None,
    timeout: float | None = None,
    to: type[Event | Command] | str | None = None,
    revision: By | Revisions | None = None,
    any_event: bool = False,
) -> Handler:
    """Return ``target`` as a handler of ``service`` that observes ``what``.

    ``method`` is the one of App that was called, for the texts of errors; ``kind`` the type of the
    payload; ``to`` is a relay's; ``any_event``: it may get another event than it observes. Raises
    ConfigurationError for what cannot be meant.
    """
    step = target if isinstance(target, Step) and to is not None else None
    label = name or (step.name if step else getattr(target, "__name__", type(target).__name__))
    told = f"App({service!r}).{method}(...) for {label}"
    if step is not None:
        target = step.run
    elif isinstance(target, Step):
        raise ConfigurationError(f"{told}: a step of relays; write App.relay(..., to=...)")
    if not label or "\0" in label or any(c.isspace() for c in label):
        raise ConfigurationError(f"{told}: a handler's name has no white space")
    is_class = inspect.isclass(target)
    call = getattr(target, "handle", None) if is_class else target
    if not callable(call):
        raise ConfigurationError(f"{told}: a handler class has a method handle(event)")
    yields = inspect.isasyncgenfunction(call)
    if to is None and (inspect.isgeneratorfunction(call) or yields):
        raise ConfigurationError(f"{told}: it has a 'yield', so calling it runs nothing")
    _check_options(retry, timeout, told)
    schema = schema_of(what)
    pattern = _pattern(service, what, told)
    kind = what if kind is None and not isinstance(what, str) else kind
    decode = decoder_for(kind)
    with_context = takes_context(call, told, bound=not is_class)
    if step is None:
        check_annotations(
            call,
            told,
            gets=kind,
            bound=not is_class,
            with_context=with_context,
            any_event=any_event,
        )
    full_name = f"{service}.{label}"
    relay = None
    if to is not None:
        relay = Relaying(to, service=service, pattern=pattern, told=told)
    key_by = step.key if step is not None else None
    return Handler(
        name=label,
        full_name=full_name,
        pattern=pattern,
        target=target,
        is_class=is_class,
        is_async=yields or is_async(call),
        takes_context=with_context,
        decode=decode,
        schema=schema,
        retry=retry or _DEFAULT_RETRY,
        timeout=timeout,
        record_id=record_ids(full_name),
        key_by=key_of if schema is not None and schema.key is not None else key_by,
        identify=_identity(full_name, decode, step.value) if step and step.value else None,
        relay=relay,
        revisions=None if revision is None else revisions_of(revision, schema, told, kind),
        place_of=record_ids(full_name, of=_OF_REVISIONS),
        wait_of=record_ids(full_name, of=_OF_WAITS),
    )


def _check_options(retry: object, timeout: object, told: str) -> None:
    if retry is not None and not isinstance(retry, RetryPolicy):
        raise ConfigurationError(
            f"{told}: retry={retry!r}; a RetryPolicy, such as RetryPolicy(attempts=3)"
        )
    if timeout is not None and not (isinstance(timeout, int | float) and timeout > 0):
        raise ConfigurationError(f"{told}: timeout={timeout!r}; seconds above zero, or None")


def _pattern(service: str, what: type[Event | Command] | str, told: str) -> str:
    """Return the name or topic pattern that a handler of ``what`` observes."""
    if isinstance(what, str):
        return check_name(what, told, is_pattern=True)
    schema = schema_of(what)
    if schema is None:
        raise ConfigurationError(
            f"{told}: takes an Event or Command class, a name or a topic pattern, not {what!r}"
        )
    if schema.to not in (None, service):
        raise ConfigurationError(
            f"{told}: {schema.name} is a command to {schema.to!r}; only that service handles it"
        )
    return schema.name


def _identity(
    full_name: str, decode: Decoder, value_of: Callable[[Any], str]
) -> Callable[[Message], tuple[bytes, bytes]]:
    record_of = record_ids(full_name, of=_OF_VALUES)

    def identify(message: Message) -> tuple[bytes, bytes]:
        value = value_of(decode(message))
        return record_of(value), fingerprint(value.encode())  # so it is never a conflict

    return identify
