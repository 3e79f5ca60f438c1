"""The lanes of parked keys: what waits in them is parked, oldest first.

A parked key takes everything of it along that is not done, in the order of its delivery: the queue
of parked messages is what order there is from then on. So the lane of such a key is *cleared*:
what waits in it is parked, whatever it waits for (a retry at another handler, say, or the end of an
outage). And nothing is parked while something of the lane is not decided yet: neither while a run
of it is out, nor before what ran is settled. Parked behind its successors, or run again behind
them after a crash, it would be out of order.

Messages are published in that order on one channel, so however the process dies, what is in the
parked queue is what came first; the rest is delivered again, and follows. Where the queue refuses
one and takes the next, no replay passes until it took both; a process that dies in between parks
the first one behind the next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from worker.holds import end_wait

if TYPE_CHECKING:
    from worker.detour import Detour
    from worker.parking import Parking
    from worker.sharding.lanes import Lane, Lanes
    from worker.suspects import Suspects
    from worker.task import Task


class ParkedLanes:
    """Clears the lanes of parked keys of one consumer. I/O thread only."""

    def __init__(
        self, lanes: Lanes[Task], suspects: Suspects, parking: Parking, detour: Detour
    ) -> None:
        self._lanes = lanes
        self._suspects = suspects
        self._parking = parking
        self._detour = detour

    def clear(self, lane: Lane[Task]) -> None:
        """Park what waits in ``lane``, if its key is parked; but not what returns by a replay.

        Called whenever that may be possible from now on: where a run came back, something was
        settled or arrived. Where it is not possible yet, nothing of the lane begins until it is.
        """
        if lane.running or lane.place is None:
            return
        if not self._parking.is_parked(lane.place[1]):
            if lane.stopped:  # and set free from another shard, meanwhile
                self._lanes.go_on(lane)
            return
        if lane.settling:
            if any(map(self.holds, lane.tasks)):
                self._lanes.stop(lane)
            return
        tasks = self._lanes.withdraw(lane, self.holds)
        self._lanes.go_on(lane)
        if not tasks:
            return
        gone = {*tasks}
        self._suspects.drop(gone.__contains__)
        culprits = {task.delivery: task for task in tasks if task.given_up}
        for task in sorted(tasks, key=_order):
            culprit = culprits.get(task.delivery)
            reason = culprit.given_up if culprit is not None else ""
            end_wait(task)
            self._detour.park(task.delivery, reason, culprit)

    def holds(self, task: Task) -> bool:
        """Tell whether ``task`` must be parked: its key is, and it has yet to take effect."""
        return self._parking.holds(task.message) and not task.effective


def precedes(one: Task, other: Task) -> bool:
    """Tell whether ``one`` was delivered before ``other``, in the same shard."""
    return _order(one) < _order(other)


def _order(task: Task) -> int:
    return task.delivery.tag
