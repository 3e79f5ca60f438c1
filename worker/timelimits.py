"""Handlers that ignore their time limit: a thread cannot be ended, so its process must be."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from worker.pool import Pool
    from worker.sharding.lanes import Run
    from worker.task import Task

_GRACE = 0.5
#: Looks without a sign of life from the event loop, after which it counts as blocked.
_BLOCKED = 5


class TimeLimits:
    """Finds what runs past its limit. I/O thread only. ``loop`` runs the coroutines, if any."""

    def __init__(self, loop: Pool | None) -> None:
        self._loop = loop
        self._silence = 0
        #: Runs whose handler ignores its time limit.
        self.stuck: set[Run[Task]] = set()

    def overdue(self, running: Iterable[Run[Task]], now: float) -> list[tuple[Task, float]]:
        """Return the tasks that began to ignore their time limit, with the seconds they ran."""
        runs = set(running)
        found = []
        for run in runs - self.stuck:
            for task in run.tasks:
                limit, started = task.handler.timeout, task.started
                if limit is None or not started:
                    continue
                # A coroutine is cancelled first; only one that blocks the event loop gets here.
                grace = _GRACE + limit if task.is_async else _GRACE
                if now > started + limit + grace:
                    self.stuck.add(run)
                    found.append((task, now - started))
        self._find_blocked(runs)
        return found

    def _find_blocked(self, runs: set[Run[Task]]) -> None:
        """Give up on every coroutine once one of them blocks the event loop: none can go on."""
        loop, blocking = self._loop, any(run.tasks[0].is_async for run in self.stuck)
        silent = loop is not None and blocking and loop.stalled()
        self._silence = self._silence + 1 if silent else 0
        if self._silence >= _BLOCKED:
            self.stuck.update(run for run in runs if run.tasks[0].is_async)
