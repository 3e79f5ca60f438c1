"""A fixed pool of threads that run plain handlers.

Work goes in and comes back in batches: the I/O thread puts every run of a tick on one queue, and a
finished run wakes the I/O thread only where it sleeps. User code never runs in the I/O thread.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from worker.outcome import ABANDONED, DONE, PASSED_OVER

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Sequence
    from types import FrameType

    from worker.executor import Executor
    from worker.sharding.lanes import Run
    from worker.task import Task


#: The exit code of a child that a handler made, and that returned from it: EX_SOFTWARE.
_FORKED = 70


class ThreadPool:
    """``size`` daemon threads. ``finished`` and ``wake`` belong to the I/O thread's loop.

    A finished run is appended to ``finished`` with an outcome for each of its tasks, then
    ``wake`` is called. Threads are daemons, so that one that never returns cannot keep the
    process from ending.
    """

    def __init__(
        self,
        executor: Executor,
        size: int,
        finished: deque[Run[Task]],
        wake: Callable[[], None],
    ) -> None:
        self._executor = executor
        self._queue: SimpleQueue[Run[Task] | None] = SimpleQueue()
        self._finished = finished
        self._wake = wake
        self._threads = [
            threading.Thread(target=self._work, name=f"handler-{n}", daemon=True)
            for n in range(size)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, runs: Sequence[Run[Task]]) -> None:
        """Hand over runs; each is run by one thread, in order of its tasks."""
        put = self._queue.put
        for run in runs:
            put(run)

    def recall(self) -> None:
        """Bring back the runs that wait for a thread, and of which something must not begin."""
        waiting = []
        with suppress(Empty):
            while True:
                waiting.append(self._queue.get_nowait())
        for run in waiting:
            if run is None or self._executor.may_begin(run.tasks):
                self._queue.put(run)
            else:
                run.outcomes.extend([ABANDONED] * len(run.tasks))
                self._finished.append(run)

    def stalled(self) -> bool:
        """Tell that no thread stops the others."""
        return False

    def close(self) -> None:
        """Let the threads end when they are free; does not wait."""
        for _ in self._threads:
            self._queue.put(None)

    def _work(self) -> None:
        executor, get, own = self._executor, self._queue.get, os.getpid()
        while (run := get()) is not None:
            execute(executor, run)
            if os.getpid() != own:
                # The handler forked, and this is the child, which has a copy of all that waits.
                os._exit(_FORKED)
            self._finished.append(run)
            self._wake()


def waits_for_work(frame: FrameType) -> bool:
    """Tell whether a thread whose innermost frame this is waits for a run, in a pool of these."""
    own = ThreadPool._work.__code__  # noqa: SLF001 - our own; what it waits in has no frame
    return frame.f_code is own


def execute(executor: Executor, run: Run[Task]) -> None:
    """Run the tasks of ``run`` in order; what follows one that is not done must not overtake it."""
    outcomes = run.outcomes
    began = executor.clock()
    for task in run.tasks:
        outcome = executor.run(task)
        outcomes.append(outcome)
        # With children it is recorded later, and nothing may overtake it.
        if outcome is not DONE and not isinstance(outcome, PASSED_OVER):
            outcomes.extend([ABANDONED] * (len(run.tasks) - len(outcomes)))
            break
    run.seconds = executor.clock() - began
