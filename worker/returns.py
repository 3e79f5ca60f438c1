"""What returns of a parked key, as the consumer of its shard sees it: the other side of a replay.

:mod:`worker.replay` sends rounds: what is parked, in order, and a marker behind it. The marker sets
the key free where nothing was parked since its round was read. Two things see to it that such a
marker comes, however busy the key is:

- **A marker has its turn** once all before it in the shard is handled, and not later: what returns
  behind it waits in line until then. So the next rounds may be on their way already. What waits for
  an earlier revision is not waited for: that may be parked until the key is free, and comes behind
  it in any case.
- **From the first turn on** what arrives of the key is *withheld*, not parked, so that one of the
  next markers ends all there is; then it follows. That lasts a few seconds, and for a share of the
  prefetch; then it is parked after all, and the next marker may withhold more. So a key is set free
  that is handled faster than it grows.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from worker.errors import DedupUnavailable
from worker.parking import UNPARKED, Unpark

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from worker.dispatch import Dispatcher
    from worker.parking import Parking
    from worker.task import Delivery, Task
    from worker.timers import Timers

_PAUSE = 0.05
_WITHHOLD_SECONDS = 5.0
#: Of the prefetch of a shard so much is withheld at the most: one more quarter each time that this
#: did not suffice. The last one is left for what comes back, and for the marker behind it.
_QUARTER, _MOST_QUARTERS = 4, 3


@dataclass(slots=True, eq=False)
class _Return:
    """A parked key that a replay sends back."""

    #: A marker whose turn has not come, and all of replays that came behind it.
    line: deque[tuple[Delivery, list[Task] | Unpark]] = field(default_factory=deque)
    #: What else arrived since the turn of a marker, in order; None where that is not withheld.
    withheld: list[tuple[Delivery, list[Task]]] | None = None
    #: How many quarters of the prefetch may be withheld.
    quarters: int = 1
    #: The last marker that had its turn.
    last: Delivery | None = None


class Returns:
    """The replays that the shards of one consumer see. I/O thread only.

    ``finish`` says that a delivery needs nothing more.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        parking: Parking,
        timers: Timers,
        finish: Callable[[Delivery], None],
    ) -> None:
        self._dispatcher = dispatcher
        self._parking = parking
        self._timers = timers
        self._finish = finish
        self._keys: dict[str, _Return] = {}

    def __bool__(self) -> bool:
        return bool(self._keys)

    def admit(self, delivery: Delivery, tasks: list[Task]) -> None:
        """Put the tasks of what arrived into their lane; or park it, withhold it, or line it up."""
        message = tasks[0].message
        self._parking.admit(message)
        returning = self._keys.get(str(message.key)) if message.key is not None else None
        if returning is None:
            self._dispatcher.add_or_park(tasks)
        elif UNPARKED in message.headers:
            if returning.line:
                returning.line.append((delivery, tasks))
            else:
                self._dispatcher.add_or_park(tasks)
        elif returning.withheld is not None:
            self._withhold(returning, returning.withheld, delivery, tasks)
        else:
            self._dispatcher.add_or_park(tasks)

    def mark(self, delivery: Delivery, marker: Unpark) -> None:
        """Line up a marker."""
        returning = self._keys.setdefault(marker.key, _Return())
        returning.line.append((delivery, marker))
        if len(returning.line) == 1:
            self._go_on(marker.key, returning)

    def forget(self) -> None:
        """Forget all: it is delivered again, here or elsewhere."""
        self._keys = {}

    def drop(self, shards: Collection[int]) -> None:
        """Forget what is of these shards."""
        for returning in self._keys.values():
            returning.line = deque(
                each for each in returning.line if each[0].channel.shard not in shards
            )
            if returning.withheld is not None:
                returning.withheld = [
                    each for each in returning.withheld if each[0].channel.shard not in shards
                ]

    def _go_on(self, key: str, returning: _Return) -> None:
        """Take from the line what may go on."""
        if self._keys.get(key) is not returning:
            return  # forgotten
        line = returning.line
        while line:
            delivery, found = line[0]
            if delivery.channel.leaving:
                line.popleft()  # it comes again, behind all before it that was not handled
            elif isinstance(found, Unpark):
                if not self._has_turn(returning, delivery, found):
                    self._timers.later(_PAUSE, partial(self._go_on, key, returning))
                    return
                line.popleft()
            else:
                line.popleft()
                self._dispatcher.add_or_park(found)
        self._tidy(key, returning)

    def _has_turn(self, returning: _Return, delivery: Delivery, marker: Unpark) -> bool:
        """Set the key of ``marker`` free if its turn has come and nothing was parked since."""
        key, channel = marker.key, delivery.channel
        # Of a key that is not parked here the lane may be busy for ever with what came later.
        is_first = channel.settlement.upto >= delivery.tag - 1
        if not is_first and not self._dispatcher.lanes.is_idle(key, channel.shard):
            return False
        if returning.last is not delivery:
            returning.last = delivery
            self._begin_withholding(key, returning)
        if self._parking.is_under_way(key):
            return False
        try:
            free = self._parking.free(key, marker.upto)
        except DedupUnavailable:
            return False
        self._finish(delivery)
        if free:
            returning.quarters = 1
            self._release(returning)
        return True

    def _begin_withholding(self, key: str, returning: _Return) -> None:
        """Withhold what arrives of ``key`` for a while from now on."""
        marker = returning.last
        if returning.withheld is None:
            returning.withheld = []

        def end() -> None:
            if returning.last is marker and self._keys.get(key) is returning:
                returning.last = None
                self._release(returning)
                self._tidy(key, returning)

        self._timers.later(_WITHHOLD_SECONDS, end)

    def _withhold(
        self,
        returning: _Return,
        withheld: list[tuple[Delivery, list[Task]]],
        delivery: Delivery,
        tasks: list[Task],
    ) -> None:
        withheld.append((delivery, tasks))
        channel = delivery.channel
        number = sum(
            each.channel is channel
            for other in self._keys.values()
            for each, _ in other.withheld or ()
        )
        if number * _QUARTER > channel.prefetch * returning.quarters:
            returning.quarters = min(returning.quarters + 1, _MOST_QUARTERS)
            self._release(returning)

    def _release(self, returning: _Return) -> None:
        """Withhold nothing any more: the key was set free, or that took too long."""
        withheld, returning.withheld = returning.withheld or (), None
        for delivery, tasks in withheld:
            if not delivery.channel.leaving:
                self._dispatcher.add_or_park(tasks)

    def _tidy(self, key: str, returning: _Return) -> None:
        """Forget a key of which nothing is left here."""
        if not returning.line and returning.last is None:
            self._keys.pop(key, None)
