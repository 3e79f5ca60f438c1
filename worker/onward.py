"""What waits for an earlier revision when its queue ends: it goes on in the next generation.

What it waits for may have been published behind the marker of the old queue, so it comes to a new
one; and no new one is consumed before the old ones are drained (``sharding.generations``). So once
nothing is left before the marker but what waits for revisions, each of these is passed on to the
shard of its key in the next generation, with a confirm, and acknowledged here.

Order: there it lies behind all that was published before, its own successors among it, like one
that was published late. Its handler keeps the order of revisions, whatever the order of arrival is;
all other handlers of the message are through with it, and find a duplicate. How long it has waited
the store knows by its id, there as here.

Nothing is lost by a crash: what is confirmed and not acknowledged comes again here, waits, and is
passed on once more; of two copies the second is a duplicate.

Nor does anything of it run here and there. As soon as all shards are drained others consume the
next generation, so what was passed on must not be delivered here again; but an acknowledgement can
be lost with its connection, and of many the broker may forget some (``Inbound.end_consumers``). So
a channel that passed something on is never drained. It is closed, and its queue consumed anew:
where the marker comes first, nothing is in front of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from worker.holds import end_wait

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from worker.detour import Detour
    from worker.gaps import Gaps
    from worker.link import Link
    from worker.sharding.lanes import Lanes
    from worker.task import Task
    from worker.transport.queuechannel import QueueChannel


class Ends:
    """The queues that one consumer consumes up to their markers. I/O thread only.

    ``renewed`` is called with a shard whose queue is consumed anew.
    """

    def __init__(
        self,
        link: Link,
        lanes: Lanes[Task],
        gaps: Gaps,
        detour: Detour,
        renewed: Callable[[int], None],
    ) -> None:
        self._link = link
        self._lanes = lanes
        self._gaps = gaps
        self._detour = detour
        self._renewed = renewed
        self._sealed: list[QueueChannel] = []

    def add(self, channel: QueueChannel, tag: int) -> None:
        """Note that the marker of a queue came."""
        channel.sealed_at = tag
        self._sealed.append(channel)

    def clear(self) -> None:
        """Forget all: the markers come again."""
        self._sealed = []

    def drop(self, shards: Collection[int]) -> None:
        """Forget those of these shards."""
        self._sealed = [each for each in self._sealed if each.shard not in shards]

    def look(self) -> None:
        """Pass on what waits where nothing else is left. Raises BrokerUnreachable."""
        for channel in self._sealed:
            if channel.passed_on and channel.is_settled:
                self._anew(channel)
                return  # what is looped over has changed
            if not channel.is_settled:
                self._pass_on(channel)

    def _anew(self, channel: QueueChannel) -> None:
        """Have all delivered again that is not acknowledged, to another channel."""
        self._link.close_channel(channel)
        self._link.forget_channel(channel)
        self._renewed(channel.shard)
        self._link.take([channel.shard], again=True)

    def _pass_on(self, channel: QueueChannel) -> None:
        target = self._link.declared[-1]
        if target.generation == self._link.topology.generation:
            return  # whoever changed the plan is not heard of yet
        left = channel.settlement.left_before(channel.sealed_at)
        if left > channel.held:
            return  # what is left may be what they wait for
        waiting = self._gaps.waiting_in(channel)
        if len(waiting) < left:
            return  # so it may be here: it is tried again, say
        for delivery, held in waiting.items():
            for task, lane in held:
                self._lanes.withdraw(lane, {task}.__contains__)
                end_wait(task)
            channel.passed_on, message = True, held[0][0].message
            self._detour.pass_on(delivery, target.queue_for(message.key or message.id))
