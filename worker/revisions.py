"""Revisions: which state of what its key names a message tells of, and whether it comes too late.

A handler that was registered with ``revision=`` is told of each state once, and never of an older
one after a newer. Its last revision of a key is that of the latest message that took effect: it
lies in the dedup store, and is written with the completion of that message.

A message is judged in the handler's own thread, when it is decoded and before anything of the user
runs, by the last revision as it was when the message was claimed, and by what ran before it in its
run. That is enough: the lane of a key runs one task at a time, a batch marks before it looks, and
what another process does to the key it does before this one has the shard. (One that sleeps past
its lease between this judgement and the first line of the handler is beyond that, as it is for the
order of a key.) A crash between effect and mark repeats the effect, as everywhere on this tier; but
what is at or below a revision that was marked never runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeGuard, get_args

from worker.errors import ConfigurationError
from worker.message import schema_of
from worker.outcome import DeadLetter, Early, Outcome, Superseded
from worker.payload import Unfit, names_in

if TYPE_CHECKING:
    from worker.message import Command, Event, Message, Schema

#: Header that carries the revision of a message.
REVISION_HEADER = "qw-revision"
#: A field of the payload (``revision``, ``meta.version``), or a function of the event that a
#: handler gets; None from it: the message has none, and is handled as it comes.
By = str | Callable[[Any], int | None]
Gap = Literal["accept", "wait", "dead_letter"]
#: What can become of a message when the wait is over.
Then = Literal["dead_letter", "accept"]

_MOST = 2**63 - 1
_MISSING = object()


@dataclass(frozen=True, slots=True)
class Revisions:
    """How a handler judges messages by their revisions.

    ``by`` tells where the revision is: a field of the payload, or a function of the event. Where
    the payload has none, the header ``qw-revision`` counts. Revisions are integers from 0 up. A
    message at or below the last revision of its key is *superseded*: done, without effect.

    ``gap`` says what becomes of a message when the one before it (its revision less 1) was not
    done: ``"accept"`` runs it; ``"wait"`` lets it wait for what is missing, up to ``limit`` seconds
    after it was first seen, while all else goes on, and then does what ``then`` says;
    ``"dead_letter"`` sets it aside at once. The first message of a key is accepted, whatever its
    revision is.

    Raises ValueError for values that cannot be meant.
    """

    by: By
    gap: Gap = "accept"
    limit: float = 60.0
    then: Then = "dead_letter"

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        for name, kinds in (("gap", Gap), ("then", Then)):
            value = getattr(self, name)
            if value not in get_args(kinds):
                told = ", ".join(map(repr, get_args(kinds)))
                raise ValueError(f"Revisions({name}={value!r}): one of {told}")
        if isinstance(self.limit, bool) or not isinstance(self.limit, int | float):
            raise ValueError(f"Revisions(limit={self.limit!r}): seconds")
        if not 0 < self.limit < float("inf"):
            raise ValueError(f"Revisions(limit={self.limit!r}): seconds above zero")
        given: object = self.by
        if not (all(given.split(".")) if isinstance(given, str) else callable(given)):
            raise ValueError(
                f"Revisions({given!r}): a field of the payload, as 'revision' or 'meta.version', or"
                " a function of the event"
            )

    @property
    def longest(self) -> float:
        """How many seconds a message can wait for what is missing."""
        return self.limit if self.gap == "wait" else 0.0

    def of(self, event: object, message: Message) -> int | None:
        """Return the revision of ``message``, whose handler gets ``event``. Raises Unfit."""
        found = self._in_payload(event)
        if found is _MISSING or found is None:
            found = message.headers.get(REVISION_HEADER, found)
        if found is None:
            return None
        if found is _MISSING:
            raise Unfit(
                f"it has no revision, neither as {self.by!r} in its payload nor in the header"
                f" {REVISION_HEADER}"
            )
        if not is_revision(found):
            raise Unfit(f"its revision is {found!r:.80}; it must be an integer from 0 to 2**63 - 1")
        return found

    def _in_payload(self, event: object) -> object:
        if not isinstance(self.by, str):
            try:
                return self.by(event)
            except Exception as error:  # noqa: BLE001 - whatever a function of the user raises
                raise Unfit(f"its revision: {type(error).__name__}: {error}") from None
        value = event
        for name in self.by.split("."):
            if isinstance(value, Mapping):
                value = value.get(name, _MISSING)
            else:
                value = getattr(value, name, _MISSING)
        return value


class Reached:
    """The last revision of one (handler, key), as far as one run knows it."""

    __slots__ = ("last",)

    def __init__(self) -> None:
        self.last: int | None = None


class Progress:
    """What a task knows of its revision; of those of handlers that have any."""

    __slots__ = ("crowd", "due", "over", "place", "reached", "revision")

    def __init__(self, place: bytes) -> None:
        #: Where the store keeps the last revision; empty where the message has no key.
        self.place = place
        #: As its claim found it; shared by the tasks of one place in one run.
        self.reached = Reached()
        #: None until it was looked at, or where it has none.
        self.revision: int | None = None
        #: Until when it waits for the ones before it; None while nobody knows.
        self.due: float | None = None
        #: It has waited long enough.
        self.over = False
        #: Why that was shorter than it may wait; empty where it was not.
        self.crowd = ""

    def note(self) -> None:
        """Note that the effect of its revision happened."""
        if self.revision is not None:
            self.reached.last = self.revision


def judge(
    revisions: Revisions, progress: Progress, event: object, message: Message
) -> Outcome | None:
    """Return what becomes of ``message`` instead of running it; None: run it. Raises Unfit."""
    revision = progress.revision = revisions.of(event, message)
    if revision is None:
        return None
    if not progress.place:
        raise Unfit(f"it has revision {revision} and no key that tells of what")
    last = progress.reached.last
    if last is None or revision == last + 1:
        return None
    if revision <= last:
        return Superseded(revision, last)
    return _beyond_gap(revisions, progress, revision, last)


def _beyond_gap(
    revisions: Revisions, progress: Progress, revision: int, last: int
) -> Outcome | None:
    """Return what becomes of a message of which an earlier one is missing; None: it runs."""
    waits = revisions.gap == "wait"
    if waits and not progress.over:
        return Early(revision, last)
    if (revisions.then if waits else revisions.gap) == "accept":
        return None
    waited = f" in {revisions.limit:g} s" if waits else ""
    if progress.crowd:
        waited = f"; {progress.crowd}"
    missing = f"{last + 1}" if revision == last + 2 else f"{last + 1} to {revision - 1}"
    return DeadLetter(f"its revision is {revision}, and {missing} did not come before it{waited}")


def is_revision(value: object) -> TypeGuard[int]:
    """Tell whether ``value`` can be a revision."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST


def revision_of(event: Event | Command) -> int | None:
    """Return the revision that ``event`` is published with; None where it has none.

    Raises ValueError where what its class names gives no revision.
    """
    schema = schema_of(event)
    if schema is None or schema.revision is None:
        return None
    source = schema.revision
    value: object = source(event) if callable(source) else getattr(event, source)
    if value is None or is_revision(value):
        return value
    raise ValueError(f"{schema.name}: its revision is {value!r}; an integer from 0 to 2**63 - 1")


def revisions_of(
    given: By | Revisions, schema: Schema | None, told: str, kind: Any = None
) -> Revisions:
    """Return what a handler was given as ``revision``. Raises ConfigurationError.

    ``kind`` is the type of the payload, where it is told.
    """
    try:
        revisions = given if isinstance(given, Revisions) else Revisions(given)
    except ValueError as error:
        raise ConfigurationError(f"{told}: {error}") from None
    if schema is not None and schema.key is None:
        raise ConfigurationError(
            f"{told}: revision= needs a key, and {schema.name} has none; give its class key=..."
        )
    by = revisions.by
    if isinstance(by, str):
        fields, name = names_in(kind), getattr(kind, "__qualname__", "")
        if schema is not None:
            fields, name = schema.fields, schema.name
        first = by.split(".")[0]
        if fields is not None and first not in fields and not hasattr(kind, first):
            raise ConfigurationError(
                f"{told}: revision={by!r} is no field of {name} ({', '.join(fields)})"
            )
    return revisions
