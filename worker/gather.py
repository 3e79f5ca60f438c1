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
from functools import partial
from typing import TYPE_CHECKING

from worker.errors import BrokerUnreachable, DedupUnavailable
from worker.intake import Onward
from worker.outcome import DeadLetter
from worker.parking import UNPARKED, Unpark
from worker.seal import Sealed
from worker.task import Delivery

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from worker.detour import Detour
    from worker.dispatch import Dispatcher
    from worker.intake import Found, Intake
    from worker.link import Link
    from worker.parking import Parking
    from worker.relay import Relay
    from worker.task import Task
    from worker.telemetry import Counters
    from worker.timers import Timers
    from worker.transport.inbound import QueueChannel

logger = logging.getLogger("worker")

_FETCH = 1000
_UNPARK_PAUSE = 0.05
_AGAIN = 0.5
_WITHHOLD_SECONDS = 5.0
#: Of the prefetch of a shard so much is withheld at the most: one more quarter each time that this
#: did not suffice. The last one is left for what comes back, and for the marker behind it.
_QUARTER, _MOST_QUARTERS = 4, 3


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
        #: The store was asked for the parked keys a moment ago and did not answer.
        self._ignorant = False
        self._draining = False
        #: By parked key: what arrived since a replay of it was at its marker, in order.
        self._withheld: dict[str, list[tuple[Delivery, list[Task]]]] = {}
        #: What ends the withholding of a key; a later marker puts it off.
        self._withholding: dict[str, object] = {}
        #: How many quarters of the prefetch may be withheld, where one did not suffice.
        self._quarters: dict[str, int] = {}

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
        if not self._arrived or not self._knows_what_is_parked():
            return 0
        arrived, self._arrived = self._arrived, []
        add = self._dispatcher.add
        some_parked = bool(self._parking or self._withheld)
        sealed = False
        for delivery, tasks in arrived:
            if sealed and delivery.channel.sealed_at:
                continue  # it came behind a marker
            if not isinstance(tasks, list):
                sealed = self._divert(delivery, tasks) or sealed
            elif not tasks:
                self._finish(delivery)
            elif some_parked:
                self._add_or_park(delivery, tasks)
            else:
                add(tasks)
        self._counters.received += len(arrived)
        return len(arrived)

    def _divert(self, delivery: Delivery, found: DeadLetter | Unpark | Onward | Sealed) -> bool:
        """Send a delivery where it belongs that is none for handlers here.

        Tells whether it was the marker behind which nothing of its queue counts.
        """
        if delivery.channel.relays:
            self._counters.relayed += 1
            self._counters.received -= 1  # it comes again, or is of no shard
        match found:
            case DeadLetter():
                self._detour.dead_letter_delivery(delivery, found)
            case Unpark():
                self._unpark(delivery, found)
            case Onward(key):
                self._relay.pass_on(delivery, key)
            case Sealed() if delivery.channel.relays:
                self._relay.seal(delivery)
            case Sealed():
                delivery.channel.sealed_at = delivery.tag
                return True
        return False

    def _add_or_park(self, delivery: Delivery, tasks: list[Task]) -> None:
        """Put ``tasks`` into their lane, or park or withhold them where their key is parked.

        Where others of the key are still in its lane they go behind them, and are parked when
        they would be claimed: the order of parking is that of the replay.
        """
        message = tasks[0].message
        self._parking.admit(message)
        if message.key in self._withheld and UNPARKED not in message.headers:
            self._withhold(str(message.key), delivery, tasks)
        elif self._parking.holds(message) and self._dispatcher.is_lane_idle(message):
            for _ in tasks:
                self._detour.park(delivery)
        else:
            self._dispatcher.add(tasks)

    def _withhold(self, key: str, delivery: Delivery, tasks: list[Task]) -> None:
        self._withheld[key].append((delivery, tasks))
        channel = delivery.channel
        withheld = sum(d.channel is channel for found in self._withheld.values() for d, _ in found)
        quarters = self._quarters.get(key, 1)
        if withheld * _QUARTER > channel.prefetch * quarters:
            self._quarters[key] = min(quarters + 1, _MOST_QUARTERS)
            self._release(key)

    def _release(self, key: str) -> None:
        """Withhold nothing of ``key`` any more: it was set free, or that took too long."""
        self._withholding.pop(key, None)
        for delivery, tasks in self._withheld.pop(key, ()):
            if not delivery.channel.leaving:
                self._add_or_park(delivery, tasks)

    def forget(self) -> None:
        """The connection is lost: what it delivered comes again on the next one."""
        self._arrived = []
        self._known = set()
        self._withheld, self._withholding = {}, {}

    def drop(self, shards: Collection[int]) -> None:
        """Put nothing of these shards into lanes that was read before."""
        self._arrived = [
            (delivery, found)
            for delivery, found in self._arrived
            if delivery.channel.relays or delivery.channel.shard not in shards
        ]
        self._known = {channel for channel in self._known if channel.shard not in shards}
        for key, found in self._withheld.items():
            self._withheld[key] = [(d, t) for d, t in found if d.channel.shard not in shards]

    def drain(self) -> None:
        """Put nothing more into lanes; go on reading, for the heartbeats."""
        self._draining = True
        self._arrived = []
        self._withheld, self._withholding = {}, {}

    def _knows_what_is_parked(self) -> bool:
        """Read the parked keys where a channel delivers for the first time.

        While the store does not answer, nothing that was read goes on.
        """
        if len(self._known) == len(self._link.channels):
            return True
        new = {delivery.channel for delivery, _ in self._arrived} - self._known
        if not new:
            return True
        if self._ignorant:
            return False
        try:
            self._parking.load()
        except DedupUnavailable as error:
            self._ignorant = True
            self._timers.later(_AGAIN, self._ask_again)
            logger.warning("which keys are parked cannot be read, so nothing begins: %s", error)
            return False
        self._known |= new
        return True

    def _ask_again(self) -> None:
        self._ignorant = False

    def _unpark(self, delivery: Delivery, marker: Unpark) -> None:
        """The marker of a replay: set its key free once all before it is handled.

        Where something was parked since, the replay sends that too, and another marker; what
        arrives until then is withheld.
        """
        if delivery.channel.leaving or self._draining:
            return  # it comes again, behind all before it that was not handled
        key = marker.key
        again = partial(self._unpark, delivery, marker)
        if not self._dispatcher.lanes.is_idle(key, delivery.channel.shard):
            self._timers.later(_UNPARK_PAUSE, again)
            return
        self._begin_withholding(key)
        if self._parking.is_under_way(key):
            self._timers.later(_UNPARK_PAUSE, again)
            return
        try:
            if self._parking.free(key, marker.upto):
                self._quarters.pop(key, None)
                self._release(key)
        except DedupUnavailable:
            self._timers.later(_UNPARK_PAUSE, again)
            return
        self._finish(delivery)

    def _begin_withholding(self, key: str) -> None:
        """Withhold what arrives of ``key`` for a while from now on."""
        self._withheld.setdefault(key, [])
        turn = self._withholding[key] = object()

        def end() -> None:
            if self._withholding.get(key) is turn:
                self._release(key)
            if key not in self._withholding:
                self._quarters.pop(key, None)

        self._timers.later(_WITHHOLD_SECONDS, end)

    def _finish(self, delivery: Delivery) -> None:
        delivery.open_tasks = 1
        self._settled(delivery)
