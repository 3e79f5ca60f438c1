"""The closed list of what the runtime tells about itself, and how to listen.

Counters are plain integers in :class:`Counters`: the good path of a message adds numbers and
nothing more. How it is at one moment is told by :class:`Gauges`, and of each shard by
:class:`ShardGauges`. What a number means is said where its field is, and shown by ``/metrics``.
Everything that is worth a log line is an event of the union :data:`RuntimeEvent`, emitted through a
:class:`Telemetry` that the app owns.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

logger = logging.getLogger("worker")


def _number(help: str, default: Any = 0, *, unit: str = "") -> Any:  # noqa: A002 - Prometheus' word
    """Declare a number: what it means, and the unit of one that is not a count."""
    return field(default=default, metadata={"help": help, "unit": unit})


@dataclass(slots=True)
class Counters:
    """What one consumer did since its start. Written by its I/O thread only.

    A task is a message at one of its handlers.
    """

    received: int = _number("Messages that shards delivered, those that came again included")
    relayed: int = _number("Messages without a slot that were taken from the relay queue")
    executed: int = _number("Executions of handlers that came to an end, failed ones included")
    completed: int = _number("Tasks that were recorded as done")
    duplicates: int = _number("Tasks that were dropped because they had been done before")
    retried: int = _number("Failed attempts after which the task will be tried again")
    dead_lettered: int = _number("Letters that were set aside for the dead-letter queue")
    parked: int = _number("Messages that were set aside because their key is parked")
    busy: int = _number("Times that a task had to wait because another owner was at work on it")
    suspects: int = _number("Tasks whose last owner died with them, to be run one at a time")
    stale: int = _number("Tasks whose claim was another's when they were to be recorded as done")
    superseded: int = _number(
        "Tasks that had no effect because a later revision of their key was done before"
    )
    early: int = _number("Tasks that began to wait for an earlier revision of their key")
    published: int = _number("Messages that handlers published, confirmed by the broker")
    acked: int = _number("Deliveries that were acknowledged")
    reconnects: int = _number("Times that the connection to the broker was lost")

    def as_dict(self) -> dict[str, int]:
        """Return the counters by name."""
        return {name: getattr(self, name) for name in Counters.__slots__}


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauges:
    """How it is with one consumer now. Those of several processes are added up."""

    in_flight: int = _number("Tasks that are claimed for, or run")
    waiting: int = _number("Tasks that wait in their lanes")
    lanes: int = _number("Keys of which something waits or runs")
    held: int = _number(
        "Tasks that wait for a retry or for an earlier revision, and use up prefetch meanwhile"
    )
    unsettled: int = _number("Deliveries that are not acknowledged yet")
    halted: int = _number("Shards that are halted by the policy of a handler")
    paused: int = _number("Tasks that wait because their handler is paused")
    connected: bool = _number("Processes that are connected to the broker", default=False)
    store_away: bool = _number("Processes that get no answer from the dedup store", default=False)

    def as_dict(self) -> dict[str, int]:
        """Return the gauges by name."""
        return {name: getattr(self, name) for name in Gauges.__slots__}


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardGauges:
    """How it is with one shard in the process that consumes it."""

    depth: int | None = _number(
        "Messages that are ready in the queue of this shard, as it was last asked", default=None
    )
    unsettled: int = _number("Deliveries of this shard that are not acknowledged yet")
    in_flight: int = _number("Tasks of this shard that are claimed for, or run")
    waiting: int = _number("Deliveries of this shard of which nothing runs")
    held: int = _number(
        "Keys of this shard of which a handler waits for a retry, for another owner, or for an"
        " earlier revision"
    )
    oldest: float = _number(
        "For how long the oldest delivery that is not acknowledged has been here",
        default=0.0,
        unit="seconds",
    )
    halted: bool = _number("1 while this shard is halted by the policy of a handler", default=False)

    def told(self) -> dict[str, float]:
        """Return by name what is not at its default: what is zero, or not known, is left out."""
        told = ((each.name, getattr(self, each.name), each.default) for each in fields(self))
        return {name: value for name, value, default in told if value != default}

    @classmethod
    def known(cls, told: Mapping[str, Any]) -> dict[str, float]:
        """Return the gauges by name that ``told`` stands for: all but what is not known."""
        found = {each.name: told.get(each.name, each.default) for each in fields(cls)}
        return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True, slots=True)
class BrokerLost:
    """The connection to the broker ended; reconnecting."""

    error: str


@dataclass(frozen=True, slots=True)
class BrokerRegained:
    """Connected again, and consuming every shard again."""

    seconds: float


@dataclass(frozen=True, slots=True)
class StoreAway:
    """The dedup store does not answer: nothing is dispatched or acknowledged until it does."""

    error: str


@dataclass(frozen=True, slots=True)
class StoreBack:
    """The dedup store answers again."""

    seconds: float


@dataclass(frozen=True, slots=True)
class AttemptFailed:
    """A handler failed and will run again in ``delay`` seconds."""

    handler: str
    message_id: str
    attempt: int
    delay: float
    reason: str


@dataclass(frozen=True, slots=True)
class DeadLettered:
    """A message was set aside. What is None is not known of it, or it reached no handler."""

    handler: str | None
    message_id: str | None
    reason: str
    name: str | None = None
    key: str | None = None


@dataclass(frozen=True, slots=True)
class RevisionSuperseded:
    """A message had no effect: revision ``last`` of its key was done, and its own is not above."""

    handler: str
    message_id: str
    key: str
    revision: int
    last: int


@dataclass(frozen=True, slots=True)
class RevisionMissing:
    """A message waits for up to ``limit`` seconds for the revisions after ``last``."""

    handler: str
    message_id: str
    key: str
    revision: int
    last: int
    limit: float


@dataclass(frozen=True, slots=True)
class PublishRefused:
    """The broker does not take a message that must go elsewhere; it is tried until it does.

    It is a dead letter, a parked message, or one for a retry queue. What it was made from stays
    unacknowledged.
    """

    message_id: str
    to: str
    reason: str


@dataclass(frozen=True, slots=True)
class KeyParked:
    """A message, and every successor of its key, is set aside until ``dlq replay --key``."""

    handler: str
    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class ShardHalted:
    """A shard is no longer consumed by this process, by the policy of its handler."""

    shard: int
    handler: str
    message_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class SuspectFound:
    """A message whose last owner died with it, the ``crashes``-th one, will run alone."""

    handler: str
    message_id: str
    crashes: int


@dataclass(frozen=True, slots=True)
class OutageBegan:
    """So many messages in a row failed at a handler that it gets one probe at a time."""

    handler: str
    failures: int
    reason: str


@dataclass(frozen=True, slots=True)
class OutageEnded:
    """A probe succeeded, or the last message that failed is gone: the handler gets everything."""

    handler: str
    seconds: float


@dataclass(frozen=True, slots=True)
class HandlerStuck:
    """A thread ignored its time limit; the process ends when the rest has drained."""

    handler: str
    message_id: str
    seconds: float


@dataclass(frozen=True, slots=True)
class HandlerAbandoned:
    """The process ends while a handler runs: its effect is unknown, and it will be run again."""

    handler: str
    message_id: str
    name: str
    key: str | None
    attempt: int
    seconds: float


@dataclass(frozen=True, slots=True)
class SecondEffect:
    """A completion found that somebody else had completed the same id: its effect ran twice."""

    handler: str
    message_id: str


@dataclass(frozen=True, slots=True)
class HeldTooMuch:
    """More than half of a shard's prefetch waits for retries: exhausted policies apply early."""

    shard: int
    held: int
    prefetch: int


@dataclass(frozen=True, slots=True)
class ShardsLapsed:
    """The leases of these shards were not renewed in time: nothing of them begins here any more."""

    shards: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LeaseOutlived:
    """A handler came back after the lease of its shard had ended: its fence is stale."""

    handler: str
    message_id: str
    shard: int
    fence: int


RuntimeEvent = (
    BrokerLost
    | BrokerRegained
    | StoreAway
    | StoreBack
    | AttemptFailed
    | DeadLettered
    | RevisionSuperseded
    | RevisionMissing
    | PublishRefused
    | KeyParked
    | ShardHalted
    | SuspectFound
    | OutageBegan
    | OutageEnded
    | HandlerStuck
    | HandlerAbandoned
    | SecondEffect
    | HeldTooMuch
    | ShardsLapsed
    | LeaseOutlived
)

Subscriber = Callable[[RuntimeEvent], None]

#: Events that somebody has to act on.
_ERRORS = (DeadLettered,)
#: Events that an operator should not have to search for; everything else is informative.
_WARNINGS = (
    BrokerLost,
    StoreAway,
    PublishRefused,
    KeyParked,
    ShardHalted,
    SuspectFound,
    OutageBegan,
    HandlerStuck,
    HandlerAbandoned,
    SecondEffect,
    HeldTooMuch,
    ShardsLapsed,
    LeaseOutlived,
)


class Telemetry:
    """Hands runtime events to the log and to whoever subscribed."""

    def __init__(self) -> None:
        self._subscribers: tuple[Subscriber, ...] = ()

    @contextmanager
    def subscribe(self, subscriber: Subscriber) -> Iterator[None]:
        """Call ``subscriber`` with every event, in the I/O thread, while the block runs.

        It must be quick and must not raise; what it raises is logged and goes no further.
        """
        self._subscribers = (*self._subscribers, subscriber)
        try:
            yield
        finally:
            self._subscribers = tuple(s for s in self._subscribers if s is not subscriber)

    def emit(self, event: RuntimeEvent, *, told: bool = False) -> None:
        """Log ``event``, and hand it to every subscriber; ``told``: the log has it already."""
        level = logging.DEBUG if told else _level(event)
        if logger.isEnabledFor(level):
            details = {name: getattr(event, name) for name in event.__slots__}
            known = [(name, value) for name, value in details.items() if value is not None]
            text = " ".join(f"{name}={value}" for name, value in known)
            logger.log(level, "%s: %s", type(event).__name__, text, extra={"event": details})
        for subscriber in self._subscribers:
            try:
                subscriber(event)
            except Exception:
                logger.exception("a subscriber to runtime events raised")


def _level(event: RuntimeEvent) -> int:
    if isinstance(event, _ERRORS):
        return logging.ERROR
    return logging.WARNING if isinstance(event, _WARNINGS) else logging.INFO
