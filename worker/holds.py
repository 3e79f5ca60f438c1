"""What a handler waits for in the lane of a key: its next attempt, or that the last is settled."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.sharding.lanes import Lane, Lanes
    from worker.task import Task
    from worker.timers import Timers


class Holds:
    """Lets the handlers of one consumer wait in lanes, and go on. I/O thread only.

    While one waits nothing of it runs in that lane, before every hold of it has ended. ``settled``
    is called with a lane in which something is settled.
    """

    def __init__(
        self, lanes: Lanes[Task], timers: Timers, settled: Callable[[Lane[Task]], None]
    ) -> None:
        self._lanes = lanes
        self._timers = timers
        self._settled = settled
        #: Rises when the deliveries of before are dead; holds of before mean nothing then.
        self._epoch = 0

    def until(self, due: float, task: Task, lane: Lane[Task]) -> None:
        """Let the handler of ``task`` wait in ``lane`` until ``due``."""
        self._timers.at(due, self._hold(task, lane))

    def for_retry(self, task: Task, lane: Lane[Task], due: float) -> None:
        """Let it wait until ``due``, and count that in its channel."""
        task.waits = True
        task.delivery.channel.held += 1
        self._timers.at(due, partial(end_wait, task))
        self.until(due, task, lane)

    def until_settled(self, task: Task, lane: Lane[Task]) -> Callable[[], None]:
        """Let it wait until ``task``, which ran, is settled; return what is to be called then."""
        lane.settling += 1
        resume = self._hold(task, lane)

        def settled() -> None:
            lane.settling -= 1
            resume()
            self._settled(lane)

        return settled

    def forget(self) -> None:
        """End all holds: the lanes are about to be cleared."""
        self._epoch += 1

    def _hold(self, task: Task, lane: Lane[Task]) -> Callable[[], None]:
        epoch, name = self._epoch, task.handler_name
        self._lanes.hold(lane, name)

        def resume() -> None:
            if epoch == self._epoch:
                self._lanes.resume(lane, name)

        return resume


def end_wait(task: Task) -> None:
    """Count ``task`` no more as one that waits for a retry or a revision."""
    if task.waits:
        task.waits = False
        task.delivery.channel.held -= 1
