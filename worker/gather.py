"""Step 3 of the tick: deliveries off the broker, decoded, into the lanes.

Reading asks nobody but the broker, so that it can be done while the dedup store works; what was
read is put into lanes afterwards, in the order of its delivery.

A consumer of a shard may have waited for its turn for hours (one consumer a queue is active), and
its predecessor may have parked keys meanwhile. So the parked keys are read again at the first
delivery of a channel, before anything of it goes into a lane: from then on until the channel
closes only this process parks and frees the keys of that shard.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from worker.barrier import Barrier, Barriers
from worker.errors import BrokerUnreachable, DedupUnavailable
from worker.intake import ToShard
from worker.onward import Ends
from worker.outcome import DeadLetter
from worker.parking import Unpark
from worker.returns import Returns
from worker.seal import Sealed
from worker.task import Delivery

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from worker.detour import Detour
    from worker.dispatch import Dispatcher
    from worker.intake import Found, Intake
    from worker.inventory import Inventory
    from worker.link import Link
    from worker.parking import Parking
    from worker.relay import Relay
    from worker.telemetry import Counters
    from worker.timers import Timers
    from worker.transport.queuechannel import QueueChannel

logger = logging.getLogger("worker")

_FETCH = 1000
_AGAIN = 0.5


class Gatherer:
    """Reads the deliveries of one consumer and puts them into lanes. I/O thread only.

    ``settled`` says that a task of a delivery needs nothing more.
    """

    def __init__(  # noqa: PLR0913 - the parts of the consumer that it stands between
        self,
        *,
        link: Link,
        intake: Intake,
        dispatcher: Dispatcher,
        detour: Detour,
        relay: Relay,
        parking: Parking,
        inventory: Inventory,
        timers: Timers,
        counters: Counters,
        settled: Callable[[Delivery], None],
    ) -> None:
        self._link = link
        self._read_one = intake.read
        self._dispatcher = dispatcher
        self._detour = detour
        self._relay = relay
        self._parking = parking
        self._inventory = inventory
        self._timers = timers
        self._counters = counters
        self._settled = settled
        #: What was read and is not in lanes yet; whether this tick looked for it; and why it could
        #: not be read.
        self._arrived: list[tuple[Delivery, Found]] = []
        self._looked = False
        self._broken: BrokerUnreachable | None = None
        #: The channels that delivered since they were opened.
        self._known: set[QueueChannel] = set()
        #: The parked keys were asked for a moment ago, in vain.
        self._ignorant = False
        self._draining = False
        self._returns = Returns(dispatcher, parking, timers, self._finish)
        self._barriers = Barriers()
        self._ends = Ends(
            link, dispatcher.lanes, dispatcher.gaps, detour, lambda shard: self.drop([shard])
        )

    def begin(self) -> None:
        """Begin a tick: the broker may be looked at again."""
        self._looked = False

    def read(self) -> None:
        """Take deliveries off the broker and decode them. Raises nothing, asks nobody else."""
        self._looked = True
        if self._draining and self._link.is_polled:
            return
        try:
            fetched = self._link.fetch(_FETCH)
        except BrokerUnreachable as error:
            self._broken = error  # told by gather
            return
        if self._draining:
            return  # heartbeats were read too; what is delivered goes back when its channel closes
        read = self._read_one
        for channel, arrival in fetched:
            delivery = Delivery(channel, arrival.tag, arrival)
            self._arrived.append((delivery, read(delivery, arrival)))

    def gather(self) -> int:
        """Put what was read into lanes; return how many deliveries. Raises BrokerUnreachable."""
        if not self._looked:
            self.read()
        if self._broken is not None:
            error, self._broken = self._broken, None
            raise error
        self._ends.look()
        for delivery, barrier in self._barriers.due():
            self._pass(delivery, barrier)
        if not self._arrived or not self._knows_what_is_parked():
            return 0
        arrived, self._arrived = self._arrived, []
        add = self._dispatcher.add
        some_parked = bool(self._parking or self._returns)
        sealed = False
        for delivery, tasks in arrived:
            if sealed and delivery.channel.sealed_at:
                continue  # it came behind a marker
            if not isinstance(tasks, list):
                sealed = self._divert(delivery, tasks) or sealed
            elif not tasks:
                _note(delivery)
                self._finish(delivery)
            elif some_parked:
                self._returns.admit(delivery, tasks)
            else:
                add(tasks)
        self._counters.received += len(arrived)
        return len(arrived)

    def _divert(
        self, delivery: Delivery, found: DeadLetter | Unpark | ToShard | Sealed | Barrier
    ) -> bool:
        """Send a delivery where it belongs that is none for handlers here.

        Tells whether it was the marker behind which nothing of its queue counts.
        """
        if delivery.channel.relays:
            self._counters.relayed += 1
            self._counters.received -= 1  # it comes again, or is of no shard
            _note(delivery)
        match found:
            case DeadLetter():
                self._detour.dead_letter_delivery(delivery, found)
            case Unpark():
                self._returns.mark(delivery, found)
            case ToShard(key):
                self._relay.pass_on(delivery, key)
            case Barrier():
                self._barriers.add(delivery, found)
            case Sealed() if delivery.channel.relays:
                self._relay.seal(delivery)
            case Sealed():
                self._ends.add(delivery.channel, delivery.tag)
                return True
        return False

    def _pass(self, delivery: Delivery, barrier: Barrier) -> None:
        """Let a barrier go on: everything before it is settled."""
        if delivery.channel.relays:
            self._relay.pass_on(delivery, delivery.message.id if delivery.message else "")
        elif barrier.tasks:
            self._dispatcher.add(barrier.tasks)
        else:
            self._finish(delivery)

    def forget(self) -> None:
        """The connection is lost: what it delivered comes again on the next one."""
        self._arrived = []
        self._barriers.clear()
        self._ends.clear()
        self._known = set()
        self._returns.forget()
        self._parking.forget()

    def drop(self, shards: Collection[int]) -> None:
        """Put nothing of these shards into lanes that was read before."""
        self._arrived = [
            (delivery, found)
            for delivery, found in self._arrived
            if delivery.channel.relays or delivery.channel.shard not in shards
        ]
        self._known = {channel for channel in self._known if channel.shard not in shards}
        self._returns.drop(shards)
        self._barriers.drop(shards)
        self._ends.drop(shards)

    def drain(self) -> None:
        """Put nothing more into lanes; go on reading, for the heartbeats."""
        self._draining = True
        self._arrived = []
        self._barriers.clear()
        self._ends.clear()
        self._returns.forget()

    def _knows_what_is_parked(self) -> bool:
        """Read the parked keys where a channel delivers for the first time.

        While the store does not answer, nothing that was read goes on. One that has forgotten
        them is told what lies in the parked queue. Raises BrokerUnreachable.
        """
        if len(self._known) == len(self._link.channels):
            return True
        new = {delivery.channel for delivery, _ in self._arrived} - self._known
        if not new:
            return True
        if self._ignorant or self._inventory.is_reading:
            return False
        try:
            if not self._parking.load():
                lying = self._inventory.take()
                if lying is None:
                    self._ask_later()
                    return False
                self._parking.restore(lying)
        except DedupUnavailable as error:
            self._ask_later()
            logger.warning("which keys are parked cannot be read, so nothing begins: %s", error)
            return False
        self._known |= new
        return True

    def _ask_later(self) -> None:
        self._ignorant = True
        self._timers.later(_AGAIN, self._ask_again)

    def _ask_again(self) -> None:
        self._ignorant = False

    def _finish(self, delivery: Delivery) -> None:
        delivery.open_tasks = 1
        self._settled(delivery)


def _note(delivery: Delivery) -> None:
    """Tell the source that a message came of, if it came of one. Once for each, in order."""
    if delivery.channel.feed is not None:
        delivery.channel.feed.note(delivery.arrival)
