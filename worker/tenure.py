"""The shards that one consumer has: taken, given up, and trusted for so long.

Whoever assigns the shards holds a lease on each. A shard is consumed from :meth:`Tenure.take` until
``given`` is told of it, and its lease is released only after that. In between:

1. :meth:`Tenure.give` ends its beginnings: its channel is *leaving*, what waits in lanes is
   forgotten, what is claimed and has not begun comes back.
2. What runs finishes, is recorded, and what it published is confirmed.
3. What is finished is acknowledged; then the channel is closed, and what it never ran goes back in
   order. (Never a cancel before that: a quorum queue would serve the next consumer at once.)
4. ``given`` is called: from here on somebody else may consume the shard.

A lease that may have run out (:meth:`Tenure.trust` was not called in time), or that is known to be
lost, ends in the same way, but for the channel: that is closed at once, in step 1, because somebody
else may be waiting behind it. Handlers that go on then outlive their lease; each is told in the log
when it finishes, with the fence that it had.

The executor looks at the trust once more in the handler's own thread, before the payload is decoded
and the middleware called. So a process that was stopped (SIGSTOP, a suspended machine) begins
nothing that it no longer has. One that is stopped later than that, in the middleware say, is in the
midst of its handler.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from worker.errors import BrokerUnreachable
from worker.leases.base import suspended
from worker.outcome import ABANDONED
from worker.resharding import declared_by, topology_of
from worker.telemetry import LeaseOutlived, ShardsLapsed

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

    from worker.app import App
    from worker.config import Settings
    from worker.detour import Detour
    from worker.dialogue import Dialogue
    from worker.dispatch import Dispatcher, Resolve
    from worker.executor import Executor
    from worker.gather import Gatherer
    from worker.link import Link
    from worker.parking import Parking
    from worker.sharding.generations import Plan
    from worker.sharding.lanes import Lane
    from worker.task import Task
    from worker.telemetry import Telemetry
    from worker.transport.queuechannel import QueueChannel


class Tenure:
    """Which shards this consumer has. Used by the I/O thread only.

    ``given`` is called with the shards of which nothing is left here, ``lost`` where the connection
    turns out to be.
    """

    def __init__(  # noqa: PLR0913 - the parts of the consumer that hold something of a shard
        self,
        *,
        link: Link,
        gatherer: Gatherer,
        executor: Executor,
        dispatcher: Dispatcher,
        dialogue: Dialogue,
        detour: Detour,
        parking: Parking,
        telemetry: Telemetry,
        clock: Callable[[], float],
        given: Callable[[list[int]], None],
        lost: Callable[[BrokerUnreachable], None],
        app: App,
        settings: Settings,
    ) -> None:
        self._link = link
        self._gatherer = gatherer
        self._executor = executor
        self._dispatcher = dispatcher
        self._dialogue = dialogue
        self._detour = detour
        self._parking = parking
        self._telemetry = telemetry
        self._clock = clock
        self._given = given
        self._link_lost = lost
        self._app = app
        self._settings = settings
        #: What is being given up, with its fence; and what of that is no longer ours.
        self._leaving: dict[int, int] = {}
        self._lost: set[int] = set()

    @property
    def shards(self) -> Collection[int]:
        """The shards that are consumed."""
        return self._executor.fences.keys()

    @property
    def next_due(self) -> float:
        """When the trust in what is consumed ends, by the clock of the loop."""
        if not self._executor.fences:
            return float("inf")
        return self._executor.trusted_until - suspended()

    def take(self, fences: Mapping[int, int], trusted_until: float) -> None:
        """Consume these shards too, under these fences.

        ``trusted_until`` is of the ``lease_clock``. Shards that are being given up must not be
        among them. Past it, and in a drain, they are given at once.
        """
        self.trust(trusted_until)
        if self._executor.draining or not self._executor.is_trusted(self._clock()):
            self._given([*fences])
            return
        self._executor.fences = {**self._executor.fences, **fences}
        with self._noticing_loss():
            self._link.take(fences)

    def trust(self, until: float) -> None:
        """Trust the leases of what is consumed until then, by the ``lease_clock``."""
        self._executor.trusted_until = until

    def give(self, shards: Iterable[int]) -> None:
        """Begin nothing more of these shards, finish what runs, and close their channels."""
        fences = dict(self._executor.fences)
        given = {shard: fences.pop(shard) for shard in shards if shard in fences}
        self._executor.fences = fences
        self._leaving |= given
        self._link.leave(given)
        self._gatherer.drop(given)
        self._parking.leave(given)
        for shard in given:
            self._dispatcher.forget_shard(shard)
        if given:
            self._dispatcher.recall()

    def lose(self, shards: Collection[int]) -> None:
        """Somebody else may have these shards by now."""
        self.give(shards)
        lost = [shard for shard in shards if shard in self._leaving]
        self._lost.update(lost)
        with self._noticing_loss():
            for channel in self._channels(lost):
                self._link.close_channel(channel)

    def has_lost(self, shard: int) -> bool:
        """Tell whether somebody else may have ``shard``, of which something still runs here."""
        return shard in self._lost

    def follow(self, plan: Plan) -> None:
        """Declare from now on, at each connection, what ``plan`` says."""
        self._link.declared = declared_by(self._app, self._settings, plan)

    def switch(self, plan: Plan) -> None:
        """Go over to the generation that ``plan`` consumes, holding nothing of the one before."""
        self.follow(plan)
        self._gatherer.forget()
        self._link.switch(topology_of(self._app, self._settings, plan.consumed))
        self._dispatcher.forget()

    def check(self, now: float) -> None:
        """Find out what has lapsed, and what nothing is left of. Raises BrokerUnreachable."""
        if not self._executor.is_trusted(now):
            lapsed = sorted({*self._executor.fences, *self._leaving} - self._lost)
            if lapsed:
                self._telemetry.emit(ShardsLapsed(tuple(lapsed)))
                self.lose(lapsed)
        if self._leaving:
            busy = self._dispatcher.shards() | self._dialogue.shards()
            self._finish(
                [s for s in self._leaving if s not in busy and not self._detour.of_shard[s]]
            )

    @contextmanager
    def _noticing_loss(self) -> Iterator[None]:
        """Act on the loss of the connection inside the block."""
        try:
            yield
        except BrokerUnreachable as error:
            self._link_lost(error)

    def witnessing(self, resolve: Resolve) -> Resolve:
        """Return ``resolve``; it tells of handlers that end after the lease of their shard."""
        if not self._lost:
            return resolve

        def tell_and_resolve(task: Task, outcome: object, lane: Lane[Task]) -> bool:
            shard = task.message.shard
            if self.has_lost(shard) and outcome is not ABANDONED:
                fence = self._leaving[shard]
                outlived = LeaseOutlived(task.handler_name, task.message.id, shard, fence)
                self._telemetry.emit(outlived)
            return resolve(task, outcome, lane)

        return tell_and_resolve

    def _finish(self, shards: list[int]) -> None:
        """Nothing of these shards is under way: acknowledge, close, and say so."""
        if not shards:
            return
        for shard in shards:
            del self._leaving[shard]
            self._lost.discard(shard)
        channels = self._channels(shards)
        try:
            if any(not channel.closed for channel in channels):
                self._link.settle(everything=True)
            for channel in channels:
                self._link.close_channel(channel)
                self._link.forget_channel(channel)
        finally:  # a link that broke holds nothing either
            self._given(shards)

    def _channels(self, shards: Collection[int]) -> list[QueueChannel]:
        return [channel for channel in self._link.channels if channel.shard in shards]
