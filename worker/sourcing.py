"""Consumes the sources of a service, in the process that has its shard 0.

A source that cannot be consumed (it is not there, or somebody else consumes it) is told in the log
and asked for again; everything else goes on.

Nobody else may have a message of a queue in between: what one holds comes later, or comes back
behind what another has passed on. So a queue is consumed where nobody else consumes it, and
exclusively. RabbitMQ enforces the latter for classic queues ("Consumers", Exclusivity): of a quorum
queue it keeps nobody away who comes later. And it has no exclusive consumers of queues with
``x-single-active-consumer``, which keep order by themselves.

A stream keeps what was read: up to where everything was passed on, and confirmed, is remembered in
the dedup store as a revision, which never falls. A crash loses what was not remembered yet, so up
to a second of messages is passed on again, under the same ids; and so is what two processes read at
a time, where one does not know yet that it lost the shard. Both read in order, so of two messages
the first copy of the earlier one is ahead of every copy of the later.

The last message that was passed on is read once more, and dropped: where it does not come, nor any
behind it, the stream is another one of that name, whose numbers are lower, and that is told.

Where a stream is first read from what is next, its last chunk, or a time ago, that is another place
whenever it is asked for. So the time of the first time is remembered too, before anything is
consumed, and is where it goes on as long as nothing was passed on.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from datetime import UTC, datetime
from functools import partial
from math import inf
from typing import TYPE_CHECKING

from amqp.exceptions import AccessRefused, ChannelError

from worker.declaring import declare_source
from worker.dedup.base import Batch, Mark, record_ids
from worker.errors import BrokerUnreachable, DedupUnavailable
from worker.sources import OFFSET_HEADER, moment_of
from worker.transport.inbound import losses

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kombu.connection import Connection

    from worker.dedup.base import DedupStore
    from worker.sources import Offset, Source
    from worker.transport.arrival import Arrival
    from worker.transport.inbound import Inbound
    from worker.transport.queuechannel import QueueChannel

logger = logging.getLogger("worker")

#: Seconds after which one that could not be consumed is asked for again.
_AGAIN = 2.0
#: At most, where asking for it ends the connection.
_LONGEST = 300.0
#: Seconds between two times that the progress is remembered.
_REMEMBERED = 0.5
#: How many times that is renewed before the store would forget it.
_RENEWALS = 4
#: Seconds without a message after which a stream counts as read to its end.
_QUIET = 1.0
#: Seconds after which a stream that brings nothing, not even what it brought last, is told of.
_SILENT = 15.0
#: Part the places of offsets, and of the times of first asking, from other revisions.
_OF_OFFSETS, _OF_MOMENTS = "offset", "moment"


class _Taken(Exception):
    """Somebody else consumes the queue."""


class Feed:
    """One source while it is consumed."""

    def __init__(self, source: Source, place: bytes, reached: int, start: Offset | None) -> None:
        self.source = source
        #: Where the store keeps the number of the last message that was passed on.
        self.place = place
        #: Where the stream is read from this time.
        self.start = start
        #: That number, as the store has it, and as it is; -1 before the first.
        self.remembered = self.reached = reached
        self.channel: QueueChannel | None = None
        #: When the last message came, or it began.
        self.heard = 0.0
        #: The clock of the loop, as it was last; and when the store was told of it.
        self.now, self.marked = 0.0, -inf
        #: What the store is told before anything was passed on.
        self.moment: Mark | None = None
        #: It has not brought the message again that was passed on last, nor any behind it.
        self.is_silent = reached >= 0
        self._numbers: deque[tuple[int, int]] = deque()  # tag and offset

    def has_passed(self, arrival: Arrival) -> bool:
        """Tell whether a message that comes was passed on before."""
        self.is_silent = False
        offset = self._number_of(arrival)
        return offset is not None and offset <= self.remembered

    def note(self, arrival: Arrival) -> None:
        """Note that a message came. Called once for each, in order."""
        self.heard = self.now
        offset = self._number_of(arrival)
        if offset is not None:
            self._numbers.append((arrival.tag, offset))

    def _number_of(self, arrival: Arrival) -> int | None:
        headers = arrival.properties.get("application_headers")
        if not self.is_stream or not isinstance(headers, dict):
            return None
        offset = headers.get(OFFSET_HEADER)
        return offset if isinstance(offset, int) else None

    @property
    def is_stream(self) -> bool:
        """Whether what is taken from it stays there."""
        return self.source.is_stream

    @property
    def mark(self) -> Mark | None:
        """What the store shall remember."""
        return self.moment if self.reached < 0 else Mark(self.place, self.reached)

    def look(self) -> bool:
        """Look up to where all was passed on; tell whether that is to be remembered."""
        upto = self.channel.settlement.upto if self.channel is not None else 0
        numbers = self._numbers
        while numbers and numbers[0][0] <= upto:
            self.reached = max(self.reached, numbers.popleft()[1])
        return self.reached > self.remembered


class Sourcing:
    """Consumes the ``sources`` of the service that ``prefix`` stands for. I/O thread only.

    ``retention`` is how many seconds the store remembers what it is told.
    """

    def __init__(
        self, prefix: str, sources: Sequence[Source], store: DedupStore, retention: float
    ) -> None:
        self._sources = sources
        self._store = store
        self._renewal = retention / _RENEWALS
        self._place_of = record_ids(prefix, of=_OF_OFFSETS)
        self._moment_of = record_ids(prefix, of=_OF_MOMENTS)
        self._feeds: dict[str, Feed] = {}
        self._next_try: dict[str, float] = {}
        self._complaints: dict[str, str] = {}
        #: How many times in a row the connection was lost as a source was asked for.
        self._losses: Counter[str] = Counter()
        self._next_save = 0.0
        self._now = 0.0
        #: Asked right before that: whether the lease of the shard still holds.
        self.may_consume: Callable[[], bool] = lambda: True

    def tend(self, inbound: Inbound, now: float, *, origin: str) -> None:
        """Consume what is not consumed yet, and remember how far the streams are.

        ``origin`` is the queue that letters return to whose source takes nothing back. Raises
        BrokerUnreachable.
        """
        self._now = now
        for source in self._sources:
            feed = self._feeds.get(source.name)
            if feed is not None and feed.channel is not None and not feed.channel.closed:
                feed.now = now
                if feed.is_silent and now - feed.heard > _SILENT:
                    _tell_silent(feed)
            elif now >= self._next_try.get(source.name, 0.0):
                self._next_try[source.name] = now + _AGAIN
                self._consume(inbound, source, origin if source.is_stream else source.queue)
        if now >= self._next_save:
            self.save()

    def declare(self, connection: Connection) -> None:
        """Declare what may be there before it is consumed. Raises what is in ``losses``."""
        for source in self._sources:
            lasts = source.declare not in {None, "exclusive"}
            if lasts and self._now >= self._next_try.get(source.name, 0.0):
                try:
                    self._declare(connection, source)
                except ChannelError as error:
                    self._complain(source, error)
                except losses(connection) as error:
                    self._back_off(source, error)
                    raise

    def save(self) -> None:
        """Remember how far the streams are, as far as the store answers.

        Also of those that are quiet, now and then: what is not marked again is forgotten.
        """
        self._next_save = self._now + _REMEMBERED
        aged = self._now - self._renewal
        due = [feed for feed in self._feeds.values() if feed.look() or feed.marked < aged]
        marks = [feed.mark for feed in due if feed.mark is not None]
        if not marks:
            return
        try:
            self._store.apply(Batch(marks=marks))
        except DedupUnavailable:
            self._next_save = self._now + _AGAIN  # asking may take as long as the timeout
            return
        for feed in due:
            feed.remembered, feed.marked = feed.reached, self._now

    @property
    def is_quiet(self) -> bool:
        """Whether every source was asked for, and no stream has anything more for now."""
        asked = all(source.name in self._next_try for source in self._sources)
        streams = (feed for feed in self._feeds.values() if feed.is_stream)
        return asked and all(self._now - feed.heard > _QUIET for feed in streams)

    def _consume(self, inbound: Inbound, source: Source, origin: str) -> None:
        try:
            feed = self._begin(source)
            feed.heard = feed.now = self._now
            feed.channel = self._take(inbound, feed, origin)
        except (DedupUnavailable, ChannelError, _Taken) as error:
            self._complain(source, error)
        except losses(inbound.connection) as error:
            self._back_off(source, error)
            raise BrokerUnreachable(f"the connection to the broker is lost: {error}") from None
        else:
            if feed.channel is None:
                return
            self._feeds[source.name] = feed
            del self._losses[source.name]
            if self._complaints.pop(source.name, None) is not None:
                logger.info("the source %r is consumed", source.name)

    def _take(self, inbound: Inbound, feed: Feed, origin: str) -> QueueChannel | None:
        """Consume a source; None where the lease ran out. Raises _Taken, and the ``losses``."""
        source, connection = feed.source, inbound.connection
        others = self._declare(connection, source)
        if not source.is_stream and others and inbound.able.has_queue_types:
            raise _Taken(f"others consume the queue ({others})")
        if not self.may_consume():  # the answer may have taken long, and somebody else have asked
            return None
        consume = partial(
            inbound.consume_source,
            source.queue,
            origin=origin,
            feed=feed,
            arguments={} if feed.start is None else {OFFSET_HEADER: feed.start},
        )
        try:
            return consume(exclusive=not source.is_stream)
        except AccessRefused:
            if source.is_stream or self._declare(connection, source):
                raise
            # So are those answered that ask for one with x-single-active-consumer.
            return consume(exclusive=False)

    def _declare(self, connection: Connection, source: Source) -> int:
        """Declare a source, or find it; return how many consume it."""
        own = connection.channel()  # what is refused ends it
        consumers = declare_source(own, source)
        own.close()
        return consumers

    def _begin(self, source: Source) -> Feed:
        """Return the feed of a source, with where it begins. Raises DedupUnavailable."""
        place = self._place_of(source.name)
        if not source.is_stream:
            return Feed(source, place, -1, None)
        moment_place = self._moment_of(source.name)
        reached, began = self._store.apply(Batch(looks=[place, moment_place])).revisions
        if reached is not None:
            return Feed(source, place, reached, reached)
        feed = Feed(source, place, -1, source.offset)
        moment = moment_of(source.offset, time.time())
        if moment is None:
            return feed
        if began is not None:
            feed.start, moment = datetime.fromtimestamp(began, UTC), began
        feed.moment = Mark(moment_place, moment)
        self._store.apply(Batch(marks=[feed.moment]))
        return feed

    def _back_off(self, source: Source, error: BaseException) -> None:
        """Leave the next connections to all else for longer each time: a source may end them."""
        self._losses[source.name] += 1
        wait = min(_AGAIN * 2 ** min(self._losses[source.name], 10), _LONGEST)
        self._next_try[source.name] = self._now + wait
        self._complain(source, error)

    def _complain(self, source: Source, error: BaseException) -> None:
        text = str(error) or type(error).__name__
        if self._complaints.get(source.name) != text:
            self._complaints[source.name] = text
            told = "the source %r is not consumed until this is mended: %s"
            logger.warning(told, source.name, text)


def _tell_silent(feed: Feed) -> None:
    """Say that a stream has nothing where it was left."""
    feed.is_silent = False
    logger.warning(
        "the stream %r brings nothing from number %d on, up to which the source %r was read. If it"
        " was made anew, or the broker is another one, give the source another name=: under this"
        " one its messages are passed over up to there",
        feed.source.queue,
        feed.remembered,
        feed.source.name,
    )
