"""How far the consumer of qworker was with an event, and when, as its handler begins.

For a rate at which no two events are under way at once: each moment is that of the process's last.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from speed.sharedmemory import Moments
from worker.dialogue import Dialogue
from worker.pool.threads import ThreadPool
from worker.waiter import Waiter

#: The connection has something to read; the store is asked; it has answered; the pool has the task.
STAGES = ("woken", "asked", "answered", "handed")


class Stages:
    """Notes them in files of a folder; one a process."""

    def __init__(self, folder: Path) -> None:
        self._moments = {stage: Moments(folder / stage) for stage in STAGES}
        self._last = dict.fromkeys(STAGES, 0.0)
        #: Of the last task that a pool got: by the time it runs, the consumer may be further.
        self._of_task = self._last
        self._mark(Waiter, "wait", after="woken")
        self._mark(Dialogue, "exchange", before="asked", after="answered")
        self._mark(ThreadPool, "submit", before="handed")

    def note(self, number: int) -> None:
        """Say that the handler of an event has begun."""
        for stage, moments in self._moments.items():
            moments.note(number, self._of_task[stage])

    def _mark(self, owner: type, name: str, *, before: str = "", after: str = "") -> None:
        original: Callable[..., Any] = getattr(owner, name)
        last = self._last

        @wraps(original)
        def marked(*args: Any, **options: Any) -> Any:
            if before:
                last[before] = time.monotonic()
            if before == "handed" and args[1]:
                self._of_task = last.copy()
            found = original(*args, **options)
            if after:
                last[after] = time.monotonic()
            return found

        setattr(owner, name, marked)
