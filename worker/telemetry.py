"""The closed list of what the runtime tells about itself, and how to listen.

Counters are plain integers in :class:`Counters`: the good path of a message adds numbers and
nothing more. Everything that is worth a log line is an event of the union :data:`RuntimeEvent`,
emitted through a :class:`Telemetry` that the app owns.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields

logger = logging.getLogger("worker")


@dataclass(slots=True)
class Counters:
    """What one consumer did since its start. Written by its I/O thread only."""

    received: int = 0
    relayed: int = 0
    executed: int = 0
    completed: int = 0
    duplicates: int = 0
    retried: int = 0
    dead_lettered: int = 0
    parked: int = 0
    busy: int = 0
    suspects: int = 0
    stale: int = 0
    published: int = 0
    acked: int = 0
    reconnects: int = 0

    def as_dict(self) -> dict[str, int]:
        """Return the counters by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


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
    """A message was set aside."""

    handler: str | None
    message_id: str | None
    reason: str


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
    """A message whose last owner died with it will run alone."""

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
    | PublishRefused
    | KeyParked
    | ShardHalted
    | SuspectFound
    | OutageBegan
    | OutageEnded
    | HandlerStuck
    | SecondEffect
    | HeldTooMuch
    | ShardsLapsed
    | LeaseOutlived
)

Subscriber = Callable[[RuntimeEvent], None]

#: Events that an operator should not have to search for; everything else is informative.
_WARNINGS = (
    BrokerLost,
    StoreAway,
    DeadLettered,
    PublishRefused,
    KeyParked,
    ShardHalted,
    SuspectFound,
    OutageBegan,
    HandlerStuck,
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

    def emit(self, event: RuntimeEvent) -> None:
        """Log ``event`` and hand it to every subscriber."""
        level = logging.WARNING if isinstance(event, _WARNINGS) else logging.INFO
        if logger.isEnabledFor(level):
            details = {name: getattr(event, name) for name in event.__slots__}
            text = " ".join(f"{name}={value}" for name, value in details.items())
            logger.log(level, "%s: %s", type(event).__name__, text, extra={"event": details})
        for subscriber in self._subscribers:
            try:
                subscriber(event)
            except Exception:
                logger.exception("a subscriber to runtime events raised")
