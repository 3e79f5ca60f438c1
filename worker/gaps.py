"""What waits for an earlier revision of its key: in its lane, while what comes behind it goes on.

The missing message comes behind the one that waits for it, so this holds no handler in its lane but
the task alone. It is let go when the revision before it was done, or when its time is over: then in
the order of revisions, one at a time, whatever the order of arrival was. Where it runs then
(``then="accept"``) those below go before it, though they could wait yet: it supersedes them.

How long it may wait is counted by the dedup store from when it was first seen
(``Dialogue.wait``): a restart neither shortens it nor begins it again.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from worker.again import remembered_as
from worker.dialogue import Wait
from worker.holds import end_wait

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.dialogue import Dialogue
    from worker.revisions import Progress
    from worker.sharding.lanes import Lane, Lanes
    from worker.task import Delivery, Task
    from worker.timers import Timers
    from worker.transport.queuechannel import QueueChannel

#: Seconds that it waits in any case: those before it may have been delivered with it.
_LEAST = 1.0
#: Seconds after which it is looked again whether the next one may go.
_AGAIN = 0.2


class Gaps:
    """Lets the tasks of one consumer wait for revisions, and go on. I/O thread only."""

    def __init__(
        self,
        lanes: Lanes[Task],
        timers: Timers,
        dialogue: Dialogue,
        clock: Callable[[], float],
    ) -> None:
        self._lanes = lanes
        self._timers = timers
        self._dialogue = dialogue
        self._clock = clock
        #: Where it is looked again soon.
        self._again: set[tuple[Lane[Task], bytes]] = set()

    def wait(self, task: Task, lane: Lane[Task], *, limit: float, crowd: str = "") -> bool:
        """Let ``task`` wait, up to ``limit`` seconds in all; tell whether it begins to.

        ``crowd`` says why there is no room for that, where there is none: its time is over.
        """
        progress = _progress_of(task)
        begins = progress.due is None
        if crowd:
            progress.due, progress.crowd = self._clock(), crowd
            if not _runs_late(task):
                progress.over = True
                return begins
        elif begins:
            progress.due = float("inf")
            told = partial(self._told, task, lane, limit)
            message = task.message
            record = task.handler.wait_of(remembered_as(message.id, message.headers))
            self._dialogue.wait(Wait(task, record, limit, told))
        self._lanes.hold(lane, task)
        task.waits = True
        task.delivery.channel.held += 1
        self._look_when_due(progress, lane)  # it may have passed while it was let go
        return begins

    def passed(self, task: Task) -> None:
        """Let those go that waited for ``task``, which is done; or whose turn came elsewhere."""
        progress, message = _progress_of(task), task.message
        lane, last = self._lanes.find(message.key, message.shard), progress.reached.last
        if lane is None or last is None or not lane.held:
            return
        for each in self._waiting(lane, progress.place):
            if _revision(each) <= last + 1:
                self._let_go(each, lane)
        self._look(lane, progress.place)

    def waiting_in(self, channel: QueueChannel) -> dict[Delivery, list[tuple[Task, Lane[Task]]]]:
        """Return the deliveries of a channel of which all that is left waits for revisions."""
        found: dict[Delivery, list[tuple[Task, Lane[Task]]]] = {}
        for lane in self._lanes.held:
            for task in lane.tasks:
                if task in lane.held and task.delivery.channel is channel:
                    found.setdefault(task.delivery, []).append((task, lane))
        return {each: held for each, held in found.items() if len(held) == each.open_tasks}

    def _told(self, task: Task, lane: Lane[Task], limit: float, left: float) -> None:
        """Note how long a task has to wait yet."""
        progress = _progress_of(task)
        due = self._clock() + max(left, min(limit, _LEAST))
        if progress.due is None or due < progress.due:
            progress.due = due
            self._look_when_due(progress, lane)

    def _look_when_due(self, progress: Progress, lane: Lane[Task]) -> None:
        if progress.due is not None and progress.due < float("inf"):
            # Nobody takes this back when the wait is over before: it finds nothing then.
            look = partial(self._look, lane, progress.place)
            self._timers.at(progress.due, look, looks=True)

    def _look(self, lane: Lane[Task], place: bytes) -> None:
        """Let the next one go, where any has waited long enough."""
        waiting, now = self._waiting(lane, place), self._clock()
        due = [each for each in waiting if (_progress_of(each).due or 0.0) <= now]
        if not due:
            return
        if not (lane.running or self._has_let_go(lane, place)):
            first = min(waiting if _runs_late(due[0]) else due, key=_revision)
            _progress_of(first).over = True
            self._let_go(first, lane)
            due = [each for each in due if each is not first]
        if due and (lane, place) not in self._again:
            self._again.add((lane, place))
            self._timers.later(_AGAIN, partial(self._look_again, lane, place))

    def _look_again(self, lane: Lane[Task], place: bytes) -> None:
        self._again.discard((lane, place))
        self._look(lane, place)

    def _has_let_go(self, lane: Lane[Task], place: bytes) -> bool:
        """Tell whether one that waited, and was let go, has yet to run."""
        own = (each for each in lane.tasks if each not in lane.held and _is_of(each, place))
        return any(_progress_of(each).due is not None for each in own)

    def _waiting(self, lane: Lane[Task], place: bytes) -> list[Task]:
        """Return what waits for revisions of one place: a replay ``--again`` has its own."""
        return [each for each in lane.tasks if each in lane.held and _is_of(each, place)]

    def _let_go(self, task: Task, lane: Lane[Task]) -> None:
        end_wait(task)
        self._lanes.resume(lane, task)


def _progress_of(task: Task) -> Progress:
    progress = task.progress
    assert progress is not None  # noqa: S101 - nothing else waits here
    return progress


def _runs_late(task: Task) -> bool:
    """Tell whether it runs when its time is over, so that what is below it must have run."""
    revisions = task.handler.revisions
    return revisions is not None and revisions.then == "accept"


def _is_of(task: Task, place: bytes) -> bool:
    return task.progress is not None and task.progress.place == place


def _revision(task: Task) -> int:
    return _progress_of(task).revision or 0
