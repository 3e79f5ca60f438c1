"""Where handlers run: threads for plain functions, one event loop for coroutine functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections import deque

    from worker.executor import Executor
    from worker.sharding.lanes import Run
    from worker.task import Task


class Pool(Protocol):
    """Runs handlers away from the I/O thread."""

    def submit(self, runs: Sequence[Run[Task]]) -> None:
        """Run ``runs``; each comes back with an outcome for each of its tasks, in order."""

    def recall(self) -> None:
        """Let the runs that have not begun, and of which something must not, come back now.

        They come back as never run. What must not begin is the executor's to say.
        """

    def stalled(self) -> bool:
        """Tell whether nothing in it has moved since the last call, nor can."""

    def close(self) -> None:
        """Take nothing more."""


#: Makes a pool of an executor, a size, the queue for finished runs, and a call that wakes who
#: reads that queue.
PoolMaker = Callable[["Executor", int, "deque[Run[Task]]", Callable[[], None]], Pool]
