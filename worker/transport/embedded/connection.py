"""The connection: its channels, and the loop that brings deliveries.

There is no socket. A waiting connection looks every few milliseconds whether anybody changed the
database, which costs microseconds, and asks for messages only if so. The same loop keeps the
lease, clears up after the dead and sends expired messages on: whatever consumer is alive does it
for all, so no process of its own is needed for that.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias

from amqp import exceptions

from worker.transport.embedded.broker import Broker, Wanted
from worker.transport.embedded.channel import Channel, Consumer
from worker.transport.embedded.presence import LeaseLost

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from worker.transport.embedded.database import Database
    from worker.transport.embedded.store import Leased

#: Messages that one drain_events fetches and delivers.
_MOST_AT_ONCE = 1024
#: Seconds between two looks for the dead, and for queues that expired.
_TICK = 0.1
#: The lease is renewed when this part of it has passed.
_RENEWAL = 1 / 3
#: Seconds between two polls: the first after something happened, and the longest.
_SHORT_PAUSE, _LONG_PAUSE = 0.001, 0.02
_BASIC_CANCEL = (60, 30)

_Delivery: TypeAlias = "tuple[Consumer, Leased]"


class Connection:
    """A connection to the embedded broker.

    One thread at a time may use it and its channels. A process that forks must not use, in the
    child, what it opened before. A consuming connection must call ``drain_events`` or
    ``heartbeat_check`` more often than its lease is long, or it loses what it holds to others.
    """

    def __init__(self, database: Database, *, lease: float, keeps_transient: bool) -> None:
        """Connect to the broker in ``database``, whose tables are there."""
        #: kombu's connection; kombu's producers and consumers look for it here.
        self.client: object = None
        self.broker = Broker(database, lease=lease, keeps_transient=keeps_transient)
        self.connected = True
        self.channels: dict[int, Channel] = {}
        self._database = database
        self._ids = itertools.count(1)
        self._consumers: dict[int, Consumer] = {}
        self._undelivered: deque[_Delivery] = deque()
        self._confirmed: deque[tuple[Channel, int]] = deque()
        self._next_turn = 0
        self._version: tuple[int, int] | None = None
        self._topology = -1
        self._expiry: float | None = None
        self._next_tick = 0.0
        self._renew_at = time.monotonic() + lease * _RENEWAL
        self._pause = _SHORT_PAUSE

    @property
    def has_queues(self) -> bool:
        """Whether there is any queue; where there is none, nobody ever waited for a message."""
        return bool(self._database.rows("SELECT 1 FROM broker_queues LIMIT 1"))

    def channel(self) -> Channel:
        """Open a channel."""
        self._check_open()
        channel = Channel(self, next(self._ids))
        self.channels[channel.channel_id] = channel
        return channel

    def drain_events(self, timeout: float | None = None) -> None:
        """Deliver what is there, and wait for it up to ``timeout`` seconds (None: for ever).

        Raises TimeoutError (socket.timeout) where nothing came, and a recoverable amqp
        ConnectionError where the lease was lost or a consumer's queue was deleted.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            while not self._fetch_and_deliver():
                self._wait(deadline)
        except LeaseLost:
            self._lose()
            raise

    def has_news(self) -> bool:
        """Tell whether ``drain_events`` has more to do than to wait. Not in AMQP; far cheaper."""
        if not self.connected or self._confirmed or self._undelivered:
            return True
        try:
            return time.monotonic() >= self._next_tick or self._something_happened(peek=True)
        except exceptions.AMQPError:
            return True  # the next one to call meets it, and can tell

    def heartbeat_check(self) -> None:
        """Renew the lease if it is time to.

        Raises a recoverable amqp ConnectionError where it was lost.
        """
        self._check_open()
        try:
            if time.monotonic() >= self._renew_at:
                self._renew()
        except LeaseLost:
            self._lose()
            raise

    def close(self) -> None:
        """Give everything back, in order, and close. Exclusive queues go."""
        if not self.connected:
            return
        self.connected = False
        try:
            self.broker.leave()
        finally:
            self._collect()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Make all that the block does one transaction: others see all of it, or nothing.

        Not in AMQP. What raises, and is caught within the block, did not happen.
        """
        self._check_open()
        try:
            with self._database.together():
                yield
        except BaseException:
            self.broker.catalog.forget()
            raise

    def settle(self, acks: Iterable[tuple[Channel, int | None, Iterable[int]]]) -> None:
        """Acknowledge on many channels in one transaction. Not in AMQP; far cheaper than each.

        ``acks`` has (channel, tag, tags): all up to the one tag (None: none, 0: everything), and
        the single ones. Raises PreconditionFailed, before anything is settled, for a tag that
        is not there to settle.
        """
        self._check_open()
        batch = [(channel, channel.tags(upto, singles)) for channel, upto, singles in acks]
        places = [place for channel, tags in batch for place in channel.places(tags)]
        if places:
            if self.broker.acknowledge(places) < len(places):
                self.doubt()
            for channel, tags in batch:
                channel.settled(tags)

    # For the channels

    def add_consumer(self, consumer: Consumer) -> None:
        """Deliver to ``consumer`` from now on."""
        self._consumers[consumer.id] = consumer
        self.look()

    def remove_consumer(self, consumer: Consumer) -> None:
        """Deliver to ``consumer`` no more."""
        self._consumers.pop(consumer.id, None)

    def remove_channel(self, channel: Channel) -> None:
        """Forget a channel that is closed."""
        self.channels.pop(channel.channel_id, None)

    def withdraw(self, consumer: Consumer) -> list[Leased]:
        """Return what was fetched for ``consumer`` and not delivered yet, and forget it."""
        withdrawn = [row for owner, row in self._undelivered if owner is consumer]
        if withdrawn:
            self._undelivered = deque(d for d in self._undelivered if d[0] is not consumer)
        return withdrawn

    def confirmed(self, channel: Channel, tag: int) -> None:
        """Have a publish confirmed by the next drain_events."""
        self._confirmed.append((channel, tag))

    def look(self) -> None:
        """Have the next poll look for messages, whether or not the database changed."""
        self._version = None

    def doubt(self) -> None:
        """Look soon whether the lease is still there: a settlement found less than it should."""
        self._renew_at = self._next_tick = 0.0

    def _check_open(self) -> None:
        if not self.connected:
            raise exceptions.RecoverableConnectionError("the connection is closed")

    def _fetch_and_deliver(self) -> bool:
        """Deliver what is fetched; fetch first if nothing is. Tell whether there was anything."""
        self._check_open()
        if not self._confirmed and not self._undelivered:
            now = time.monotonic()
            if now >= self._next_tick:
                self._tick(now)
            if not self._something_happened():
                return False
            try:
                if not self._fetch():
                    return False
            except BaseException:
                self.look()  # what there was to see is still to be seen
                raise
        self._pause = _SHORT_PAUSE
        self._deliver()
        return True

    def _wait(self, deadline: float | None) -> None:
        """Sleep a little; raises TimeoutError where the deadline has come."""
        pause = self._pause
        if deadline is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("nothing was delivered in time")
            pause = min(pause, left)
        time.sleep(pause)
        self._pause = min(2 * self._pause, _LONG_PAUSE)

    def _deliver(self) -> None:
        """Call the consumers back with what was fetched. What one of them raises comes through."""
        while self._confirmed:
            channel, tag = self._confirmed.popleft()
            for callback in channel.events["basic_ack"]:
                callback(tag, False)
        # What callbacks fetch, withdraw or close meanwhile is seen: the queue is asked each time.
        while self._undelivered:
            if time.monotonic() >= self._renew_at:
                self._renew()
            consumer, row = self._undelivered.popleft()
            message = consumer.channel.receive(consumer, row)
            if consumer.callback is not None:
                consumer.callback(message)

    def _something_happened(self, *, peek: bool = False) -> bool:
        """Tell whether there may be something to fetch. Costs microseconds where there is not.

        Who does more than to ``peek`` has to look then.
        """
        version = self._database.version()
        if version != self._version:
            if not peek:
                # Read before looking: what is committed after it makes it differ again.
                self._version = version
            return True
        return self._expiry is not None and time.time() * 1000 >= self._expiry

    def _fetch(self) -> bool:
        """Look around, and fetch for the consumers that have room; tell whether anything came."""
        broker = self.broker
        broker.catalog.refresh()
        if broker.catalog.topology != self._topology:
            self._notice_deleted_queues()
            self._topology = broker.catalog.topology
        self._expiry = broker.next_expiry()
        if self._expiry is not None and self._expiry <= time.time() * 1000:
            broker.expire()
        wanted = self._wanted(broker.ready())
        if not wanted:
            return False
        fetched = False
        for want, rows in zip(wanted, broker.fetch(wanted), strict=True):
            consumer = self._consumers[want.consumer]
            if not consumer.no_ack:
                consumer.held += len(rows)
            self._undelivered.extend([(consumer, row) for row in rows])
            fetched = fetched or bool(rows)
        return fetched

    def _wanted(self, ready: Iterable[tuple[int, int, int]]) -> list[Wanted]:
        """Share one round among the consumers that have something to take and room for it.

        Each has its part of a round, so a full queue does not starve another. A queue's
        consumers, here and elsewhere, leave each other their share of what is ready. Whoever
        was served first in one round is last in the next.
        """
        takers = []
        for id_, count, competitors in ready:
            consumer = self._consumers.get(id_)
            if consumer is None or not consumer.channel.active:
                continue
            room = consumer.prefetch - consumer.held if consumer.prefetch else _MOST_AT_ONCE
            if room > 0:
                takers.append((consumer, min(room, -(-count // competitors))))
        if not takers:
            return []
        part = max(1, _MOST_AT_ONCE // len(takers))
        turn = self._next_turn = (self._next_turn + 1) % len(takers)
        return [
            Wanted(consumer.id, consumer.queue.id, min(limit, part), consumer.no_ack)
            for consumer, limit in takers[turn:] + takers[:turn]
        ]

    def _notice_deleted_queues(self) -> None:
        """End the consumers whose queue was deleted: by their callback, or with an error."""
        if not self._consumers:
            return
        there = self.broker.presence.own_consumers()
        gone = [c for c in self._consumers.values() if c.id not in there]
        if gone:
            self._renew()  # where it is the lease that was lost, that is what to say
        for consumer in gone:
            self.withdraw(consumer)
            consumer.channel.forget_consumer(consumer)
            if consumer.on_cancel is None:
                raise exceptions.ConsumerCancelled(consumer.tag, _BASIC_CANCEL)
            consumer.on_cancel(consumer.tag)

    def _tick(self, now: float) -> None:
        """Do what is due by time alone."""
        self._next_tick = now + _TICK
        self._database.check()
        if now >= self._renew_at:
            self._renew()
        self.broker.presence.clear_up_after_others()
        self.broker.declarations.expire_queues()

    def _renew(self) -> None:
        self.broker.presence.renew()
        self._renew_at = time.monotonic() + self.broker.presence.lease * _RENEWAL

    def _lose(self) -> None:
        """Close without giving anything back: nothing here is this connection's any more."""
        self.connected = False
        self._collect()

    def _collect(self) -> None:
        """Let go of everything."""
        self._undelivered.clear()
        self._confirmed.clear()
        self._consumers.clear()
        for channel in self.channels.values():
            channel.collect()
        self.channels.clear()
        self._database.close()
