"""Pools that run handlers at once, in the thread that hands them over: nothing runs meanwhile.

So a test needs no locks, sees one order of things, and handlers may use what belongs to the thread
of the test (a database connection in a transaction, say). Coroutines of one tick do run together,
in one event loop, as they do in production.
"""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

from worker.pool import aio, threads

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Sequence

    from worker.executor import Executor
    from worker.sharding.lanes import Run
    from worker.task import Task


class InlineThreads:
    """Runs plain handlers one after the other. Takes what a ThreadPool takes."""

    def __init__(
        self,
        executor: Executor,
        size: int,  # noqa: ARG002 - one at a time is enough
        finished: deque[Run[Task]],
        wake: Callable[[], None],  # noqa: ARG002 - nobody sleeps meanwhile
    ) -> None:
        self._executor = executor
        self._finished = finished

    def submit(self, runs: Sequence[Run[Task]]) -> None:
        """Run ``runs``; they are finished when this returns."""
        _outside_loops(lambda: self._run(runs))

    def recall(self) -> None:
        """Do nothing: what was submitted is finished."""

    def stalled(self) -> bool:
        """Tell that what was submitted is finished."""
        return False

    def close(self) -> None:
        """Do nothing."""

    def _run(self, runs: Sequence[Run[Task]]) -> None:
        for run in runs:
            threads.execute(self._executor, run)
            self._finished.append(run)


class InlineLoop:
    """Runs coroutine handlers in an event loop of its own. Takes what a LoopPool takes."""

    def __init__(
        self,
        executor: Executor,
        size: int,
        finished: deque[Run[Task]],
        wake: Callable[[], None],  # noqa: ARG002 - nobody sleeps meanwhile
    ) -> None:
        self._executor = executor
        self._finished = finished
        self._size = size
        self._runner = asyncio.Runner()

    def submit(self, runs: Sequence[Run[Task]]) -> None:
        """Run ``runs`` together; they are finished when this returns."""
        _outside_loops(lambda: self._runner.run(self._together(runs)))

    def recall(self) -> None:
        """Do nothing: what was submitted is finished."""

    def stalled(self) -> bool:
        """Tell that what was submitted is finished."""
        return False

    def close(self) -> None:
        """Close the loop."""
        _outside_loops(self._runner.close)

    async def _together(self, runs: Sequence[Run[Task]]) -> None:
        limit = asyncio.Semaphore(self._size)

        async def one(run: Run[Task]) -> None:
            async with limit:
                await aio.execute(self._executor, run)
            self._finished.append(run)

        await asyncio.gather(*(one(run) for run in runs))


def _outside_loops(call: Callable[[], None]) -> None:
    """Make ``call`` here, or in a thread where the test is a coroutine: one thread has one loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        is_inside = False
    else:
        is_inside = True
    if not is_inside:
        call()
        return
    thread = threading.Thread(target=call, name="handlers")
    thread.start()
    thread.join()


#: What a Consumer takes as its ``pools``.
INLINE: Any = (InlineThreads, InlineLoop)
