"""One event loop, in one thread, that runs coroutine handlers."""

from __future__ import annotations

import asyncio
import logging
import threading
from functools import partial
from typing import TYPE_CHECKING

from worker.outcome import ABANDONED, DONE, PASSED_OVER

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Sequence

    from worker.executor import Executor
    from worker.sharding.lanes import Run
    from worker.task import Task


logger = logging.getLogger("worker.handler")


class LoopPool:
    """Runs coroutine handlers, at most ``size`` runs at once.

    ``finished`` and ``wake`` are as for :class:`~worker.pool.threads.ThreadPool`.
    """

    def __init__(
        self,
        executor: Executor,
        size: int,
        finished: deque[Run[Task]],
        wake: Callable[[], None],
    ) -> None:
        self._executor = executor
        self._finished = finished
        self._wake = wake
        self._limit = asyncio.Semaphore(size)
        self._loop = asyncio.new_event_loop()
        #: Strong references: the event loop keeps only weak ones to its tasks.
        self._running: set[asyncio.Task[None]] = set()
        #: Runs that are not finished. One that has returned may still be cancelled.
        self._out: set[Run[Task]] = set()
        #: Runs that wait until there are fewer.
        self._waiting: dict[Run[Task], asyncio.Task[None]] = {}
        self._went_round = True
        self._thread = threading.Thread(target=self._work, name="handler-loop", daemon=True)
        self._thread.start()

    def submit(self, runs: Sequence[Run[Task]]) -> None:
        """Hand over runs; each runs its tasks in order."""
        if runs:
            self._loop.call_soon_threadsafe(self._start, list(runs))

    def recall(self) -> None:
        """Bring back the runs that wait for others, and of which something must not begin."""
        self._loop.call_soon_threadsafe(self._recall)

    def _recall(self) -> None:
        for run, task in [*self._waiting.items()]:
            if not self._executor.may_begin(run.tasks):
                task.cancel()

    def stalled(self) -> bool:
        """Tell whether the loop has not gone round since the last call: a handler blocks it."""
        stalled, self._went_round = not self._went_round, False
        self._loop.call_soon_threadsafe(self._note_round)
        return stalled

    def _note_round(self) -> None:
        self._went_round = True

    def close(self) -> None:
        """Stop the loop; coroutines that still run are cancelled."""
        self._loop.call_soon_threadsafe(self._stop)
        self._thread.join(timeout=1)

    def _work(self) -> None:
        asyncio.set_event_loop(self._loop)
        while not self._executor.closing:
            self._go_round()
        self._loop.run_until_complete(asyncio.gather(*self._running, return_exceptions=True))
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    def _go_round(self) -> None:
        """Run the loop until it is stopped, or something that a handler left in it ends it.

        asyncio lets SystemExit and KeyboardInterrupt of a task, or of a callback, out of the loop.
        Who awaits that task has got it too. All others go on.
        """
        try:
            self._loop.run_forever()
        except BaseException:
            logger.exception("something that a handler began has ended the event loop: it goes on")

    def _stop(self) -> None:
        self._executor.closing = True
        for task in self._running:
            task.cancel()
        self._loop.stop()

    def _start(self, runs: list[Run[Task]]) -> None:
        for run in runs:
            task = self._loop.create_task(self._run(run))
            self._running.add(task)
            self._out.add(run)
            task.add_done_callback(partial(self._end, run))

    async def _run(self, run: Run[Task]) -> None:
        # One that has to wait, and was recalled before anybody knew that it does, comes back now.
        if self._limit.locked() and not self._executor.may_begin(run.tasks):
            self._bring_back(run)
            return
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - this is a coroutine
        self._waiting[run] = task
        try:
            async with self._limit:
                del self._waiting[run]
                await execute(self._executor, run)
        finally:
            self._waiting.pop(run, None)
        self._finish(run)

    def _end(self, run: Run[Task], task: asyncio.Task[None]) -> None:
        """Bring back what was cancelled: recalled, or by a handler that cancels others."""
        self._running.discard(task)
        if run in self._out and task.cancelled() and not self._executor.closing:
            self._bring_back(run)

    def _bring_back(self, run: Run[Task]) -> None:
        run.outcomes.extend([ABANDONED] * (len(run.tasks) - len(run.outcomes)))
        self._finish(run)

    def _finish(self, run: Run[Task]) -> None:
        self._out.discard(run)
        self._finished.append(run)
        self._wake()


async def execute(executor: Executor, run: Run[Task]) -> None:
    """Run the tasks of ``run`` in order; what follows one that is not done must not overtake it."""
    outcomes = run.outcomes
    began = executor.clock()
    for task in run.tasks:
        outcome = await executor.run_async(task)
        outcomes.append(outcome)
        # With children it is recorded later, and nothing may overtake it.
        if outcome is not DONE and not isinstance(outcome, PASSED_OVER):
            outcomes.extend([ABANDONED] * (len(run.tasks) - len(outcomes)))
            break
    run.seconds = executor.clock() - began
