"""Sources: queues and streams that somebody else fills, from which a service takes its messages.

What lies in them is passed on to the shards of the service, in order, by one of its processes: that
which has shard 0. See ``docs/topologies.md``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from datetime import datetime
from struct import error as struct_error
from typing import TYPE_CHECKING, Any, Literal, get_args

from amqp.exceptions import FrameSyntaxError
from amqp.serialization import dumps

from worker.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

#: Where a stream is read from at first: ``"first"``, ``"last"`` (its last chunk), ``"next"``, the
#: number of a message, a time, or a text as ``"7D"`` for so long ago (RabbitMQ's documentation,
#: "Streams", x-stream-offset).
Offset = str | int | datetime
Declared = Literal["durable", "transient", "exclusive", "stream"]

#: The header in which RabbitMQ tells the number of a message of a stream.
OFFSET_HEADER = "x-stream-offset"
_LONGEST_NAME = 255
_WORDS = ("first", "last", "next")
_AGO = re.compile(r"([1-9][0-9]*)([YMDhms])")
#: As RabbitMQ has them.
_SECONDS = {"Y": 365 * 86400, "M": 30 * 86400, "D": 86400, "h": 3600, "m": 60, "s": 1}


@dataclass(frozen=True, slots=True)
class Source:
    """A queue or a stream, and what is declared of it. Raises ConfigurationError."""

    queue: str
    #: What its progress is remembered under.
    name: str
    #: None: it is a queue.
    offset: Offset | None = None
    #: None: it is there, and as it should be.
    declare: Declared | None = None
    #: Where it is bound to; empty: nowhere.
    exchange: str = ""
    routing_key: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    queue_arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        told = f"App.source({self.queue!r})"
        if not self.queue or not self.name:
            raise ConfigurationError(f"{told}: a queue, and a source, have names")
        if self.declare is not None and self.declare not in get_args(Declared):
            kinds = ", ".join(map(repr, get_args(Declared)))
            raise ConfigurationError(f"{told}: declare={self.declare!r}; one of {kinds}, or None")
        if self.declare == "stream" and self.offset is None:
            raise ConfigurationError(f"{told}: a stream needs an offset, such as 'first'")
        if self.declare in {"durable", "transient", "exclusive"} and self.is_stream:
            raise ConfigurationError(f"{told}: offset= is for streams, not for a queue")
        if self.exchange and self.declare is None:
            raise ConfigurationError(
                f"{told}: exchange= binds what is declared here; say declare=..., or leave the"
                " binding to whom the queue belongs"
            )
        _check_offset(self.offset, told)
        for each in (self.queue, self.exchange, self.routing_key):
            if len(each.encode()) > _LONGEST_NAME:
                raise ConfigurationError(f"{told}: AMQP has no names of over {_LONGEST_NAME} bytes")
        try:
            dumps("FF", [dict(self.arguments), dict(self.queue_arguments)])
        except (FrameSyntaxError, struct_error) as error:
            raise ConfigurationError(f"{told}: AMQP has no such arguments: {error}") from None

    def with_type(self, queue_type: str) -> Source:
        """Return this with the type of what is declared of it; ``queue_type``: of durable ones."""
        arguments = dict(self.queue_arguments)
        if self.declare == "stream":
            arguments["x-queue-type"] = "stream"
        elif self.declare == "durable" and queue_type:
            arguments.setdefault("x-queue-type", queue_type)
        return replace(self, queue_arguments=arguments)

    def check_beside(self, others: Iterable[Source]) -> None:
        """Refuse what cannot be meant beside ``others``."""
        for other in others:
            told = f"App.source({self.queue!r}): two sources"
            if self.queue == other.queue and not (self.is_stream and other.is_stream):
                raise ConfigurationError(
                    f"{told} take from this queue, where each message is for one of them; leave"
                    " one out"
                )
            if self.name == other.name:
                raise ConfigurationError(f"{told} are named {self.name!r}; give one name=...")

    @property
    def is_stream(self) -> bool:
        """Whether what is taken from it stays there."""
        return self.offset is not None


def left_out(wanted: Iterable[Source], taken: Iterable[Source]) -> list[str]:
    """Return what to tell of those of the ``wanted`` sources that a service does not take."""
    names = {source.name for source in taken}
    return [
        f"the source {source.name!r} is left out: streams are RabbitMQ's, and with --handler only"
        " streams are read, since nobody else would get what is taken from a queue"
        for source in wanted
        if source.name not in names
    ]


def moment_of(offset: Offset | None, now: float) -> int | None:
    """Return the time (POSIX, whole seconds) that ``offset`` means where it is said ``now``.

    None: it means the same whenever it is said.
    """
    if offset in {"last", "next"}:
        return int(now)
    ago = _AGO.fullmatch(offset) if isinstance(offset, str) else None
    return None if ago is None else max(0, int(now) - int(ago[1]) * _SECONDS[ago[2]])


def _check_offset(offset: object, told: str) -> None:
    match offset:
        case None | datetime(tzinfo=_) if offset is None or offset.tzinfo is not None:
            return
        case bool():
            pass
        case int() if offset >= 0:
            return
        case str() if offset in _WORDS or _AGO.fullmatch(offset):
            return
    raise ConfigurationError(
        f"{told}: offset={offset!r}; 'first', 'last', 'next', a number from 0, a datetime with a"
        " time zone, or how long ago, as '7D' or '12h'"
    )
