"""Suspects: the tasks whose last owner died with them, and when each of them runs.

One that kills its process is found by running it alone: the next crash then names its culprit. But
what runs may take hours, and whatever else the process has must not wait for that. So:

1. **One at a time.** A suspect is claimed when the one before it has come back, and not before.
2. **Quiet, for a second.** While one waits for its turn nothing else is claimed, until what is in
   flight has come back, and the store knows what became of the suspect before it (whose dead
   letter, say, has to be confirmed first). What takes longer than a second goes on beside it.
3. **Alone, for a second.** While it runs nothing else is claimed either; after a second the others
   go on beside it.

So a suspect costs the others two seconds at the most, however long handlers run and whatever the
broker refuses. What is in flight beside it when the process dies is charged with that crash too, as
nobody can know better, and is a suspect itself from then on. By the first rule it never runs beside
the culprit again: a poisonous message charges an innocent one once, and ``crash_limit`` (3) allows
for that. The rule knows suspects only. A message that now fails, now kills its process, comes back
from its retries as any other, and can charge the same innocent one again.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from worker.dialogue import Dialogue
    from worker.sharding.lanes import Lane, Lanes, Run
    from worker.task import Task

_QUIET_SECONDS = 1.0


class Suspects:
    """The suspects of one consumer, in the order in which they were found. I/O thread only.

    Each holds its handler in its lane until it runs. ``out`` are the runs that are claimed for or
    running.
    """

    def __init__(self, lanes: Lanes[Task], out: Collection[Run[Task]], dialogue: Dialogue) -> None:
        self._lanes = lanes
        self._out = out
        self._dialogue = dialogue
        self._waiting: deque[tuple[Task, Lane[Task]]] = deque()
        #: The one that waits for quiet.
        self._asking: Task | None = None
        #: Until when nothing else is claimed.
        self._quiet_until: float | None = None
        #: The last one that ran, or runs.
        self._last: Run[Task] | None = None

    def __bool__(self) -> bool:
        """Whether there is one that waits, or for which nothing else is claimed."""
        return bool(self._waiting) or self._quiet_until is not None

    @property
    def want_quiet(self) -> bool:
        """Whether nothing else may be claimed now; :meth:`next` was asked before."""
        return self._quiet_until is not None

    @property
    def next_due(self) -> float:
        """When others may go on, or a suspect need not wait for them any longer."""
        return float("inf") if self._quiet_until is None else self._quiet_until

    def add(self, task: Task, lane: Lane[Task]) -> None:
        """Let ``task`` wait for its turn."""
        self._lanes.hold(lane, task.handler_name)
        self._waiting.append((task, lane))

    def next(self, now: float) -> Run[Task] | None:
        """Hand out the one whose turn it is, to be claimed at once; None where it is nobody's."""
        if self._quiet_until is not None and now >= self._quiet_until:
            self._quiet_until = None
        if self._last in self._out:
            return None
        if not self._waiting:
            self._quiet_until = None
            return None
        first, _ = self._waiting[0]
        if first is not self._asking:
            self._asking, self._quiet_until = first, now + _QUIET_SECONDS
        if self._quiet_until is not None and not self._is_quiet():
            return None
        self._asking = None
        self._last = self._take()
        self._quiet_until = None if self._last is None else now + _QUIET_SECONDS
        return self._last

    def drop(self, is_gone: Callable[[Task], bool]) -> None:
        """Let those that are gone wait no more; any of them is found again if it is claimed."""
        self._asking = None
        waiting, self._waiting = self._waiting, deque()
        for task, lane in waiting:
            if is_gone(task):
                self._lanes.resume(lane, task.handler_name)
            else:
                self._waiting.append((task, lane))

    def clear(self) -> None:
        """Forget all that wait; their lanes are forgotten already."""
        self._asking = None
        self._waiting.clear()

    def _is_quiet(self) -> bool:
        """Tell whether nothing is in flight, nor anything left of the last one."""
        last = self._last.tasks if self._last is not None else ()
        return not self._out and all(self._dialogue.is_over(task) for task in last)

    def _take(self) -> Run[Task] | None:
        while self._waiting:
            task, lane = self._waiting.popleft()
            self._lanes.resume(lane, task.handler_name)
            # One that is not the next of its handler any more is found to be a suspect again.
            if not task.delivery.channel.leaving and self._lanes.is_next(task, lane):
                run = self._lanes.take_one(task, lane)
                if run is not None:
                    return run
        return None
