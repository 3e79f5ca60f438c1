"""The channel of one queue: what was delivered on it, and what of that is settled.

For the I/O thread only, as the connection that has it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from worker.settlement import Settlement

if TYPE_CHECKING:
    from worker.transport.arrival import Arrival

#: The number of the channel that consumes the relay queue, which belongs to no shard.
RELAY = -1
#: The shard whose owner consumes the sources.
SOURCED = 0
#: Finished tags behind a gap go out when they are half of what the prefetch has room for beside
#: the messages that wait.
_ACK_SLACK_SHARE = 2


class Feed(Protocol):
    """What is told of what comes from a source."""

    @property
    def is_stream(self) -> bool:
        """Whether what is taken from it stays there."""

    def has_passed(self, arrival: Arrival) -> bool:
        """Tell whether a message that comes was passed on before."""

    def note(self, arrival: Arrival) -> None:
        """Note that a message came."""


class QueueChannel:
    """The channel of one queue: what was delivered on it and what of that is settled."""

    __slots__ = (
        "channel", "closed", "feed", "halted", "held", "leaving", "origin", "passed_on", "prefetch",
        "queue", "relays", "sealed_at", "settlement", "shard",
    )  # fmt: skip

    def __init__(
        self, shard: int, queue: str, channel: Any, prefetch: int, feed: Feed | None = None
    ) -> None:
        #: Of a source: the one whose owner consumes it.
        self.shard = shard
        #: What it delivers is passed on to the shards.
        self.relays = shard == RELAY or feed is not None
        #: The source that it consumes; None: a queue of the service's own.
        self.feed = feed
        self.queue = queue
        #: The queue that letters of it go back to.
        self.origin = queue
        self.channel = channel
        self.prefetch = prefetch
        self.settlement = Settlement()
        #: How many of its tasks wait for a retry or a revision: no less than its deliveries do.
        self.held = 0
        #: Nothing more of it begins here; so it is with every channel that is closed.
        self.leaving = False
        #: The tag of the marker behind which nothing counts any more; 0 where none came.
        self.sealed_at = 0
        #: Something before that went to the next generation, and may be delivered here once more.
        self.passed_on = False
        #: Closed by the policy of a handler.
        self.halted = False
        self.closed = False

    @property
    def slack(self) -> int:
        """How many finished tags may lie behind a gap, for the sake of fewer frames."""
        return max(1, (self.prefetch - self.held) // _ACK_SLACK_SHARE) - 1

    @property
    def is_full(self) -> bool:
        """Whether nothing more is delivered before something is acknowledged."""
        return self.settlement.unsettled >= self.prefetch

    @property
    def keeps_all(self) -> bool:
        """Whether it consumes a stream, whose depth tells nothing."""
        return self.feed is not None and self.feed.is_stream

    @property
    def is_settled(self) -> bool:
        """Whether everything before the marker is acknowledged."""
        return bool(self.sealed_at) and self.settlement.upto >= self.sealed_at - 1

    @property
    def drained(self) -> bool:
        """Whether nothing before the marker will ever run here."""
        return self.is_settled and not self.passed_on
