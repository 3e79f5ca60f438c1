"""A pool whose handlers take time: they begin and end when the schedule says so."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from worker.executor import Executor
from worker.outcome import ABANDONED, DONE, PASSED_OVER, Done
from worker.sharding.lanes import Run
from worker.task import Task

if TYPE_CHECKING:
    from simulation.children import Child
    from simulation.ledger import Attempt


@dataclass(eq=False, slots=True)
class Running:
    """A handler that runs. What it will come to is known; it has come to it at ``until``."""

    run: Run[Task]
    outcome: object
    attempt: Attempt
    until: float


class Pool:
    """Takes the part of ``worker.pool.threads.ThreadPool``, in the same order of things."""

    def __init__(
        self,
        child: Child,
        executor: Executor,
        size: int,
        finished: deque[Run[Task]],
    ) -> None:
        self._child = child
        self._executor = executor
        self._size = size
        self._finished = finished
        self._waiting: deque[Run[Task]] = deque()
        self.running: list[Running] = []

    def submit(self, runs: Sequence[Run[Task]]) -> None:
        self._waiting.extend(runs)

    def recall(self) -> None:
        waiting, self._waiting = self._waiting, deque()
        for run in waiting:
            if self._executor.may_begin(run.tasks):
                self._waiting.append(run)
            else:
                self._abandon(run)

    def stalled(self) -> bool:
        return False

    def close(self) -> None:
        """Threads that run go on."""

    @property
    def may_begin(self) -> bool:
        return bool(self._waiting) and len(self.running) < self._size

    def begin(self) -> None:
        """Let a thread take the next run, if there is one."""
        if self.may_begin:
            self._begin(self._waiting.popleft())

    def ended(self, now: float) -> list[Running]:
        """Return the handlers that may return now."""
        return [each for each in self.running if each.until <= now]

    def end(self, each: Running) -> None:
        """Let a handler return; its thread goes on with the next task of the run.

        Or let it kill its process, where that is what it does.
        """
        world = self._child.world
        if world.kills(each.attempt):
            world.kill(self._child, f"by its handler, of {each.attempt.id}", each.attempt.id)
            return
        self.running.remove(each)
        run = each.run
        world.ledger.end(each.attempt, done=isinstance(each.outcome, Done))
        run.outcomes.append(each.outcome)
        if each.outcome is not DONE:  # with children, too: their parent waits for their confirm
            self._abandon(run)
        elif len(run.outcomes) < len(run.tasks):
            self._begin(run)
        else:
            self._finished.append(run)

    def _begin(self, run: Run[Task]) -> None:
        world = self._child.world
        for task in run.tasks[len(run.outcomes) :]:
            attempt = world.ledger.expect(self._child, task)
            outcome = self._executor.run(task)
            if outcome is ABANDONED:
                self._abandon(run)
                return
            if not isinstance(outcome, PASSED_OVER):
                task.started = self._executor.clock()
                until = task.started + world.duration()
                self.running.append(Running(run, outcome, attempt, until))
                return
            world.note("passes over", attempt)
            run.outcomes.append(outcome)
        self._finished.append(run)

    def _abandon(self, run: Run[Task]) -> None:
        run.outcomes.extend([ABANDONED] * (len(run.tasks) - len(run.outcomes)))
        self._finished.append(run)


def nowhere(*_: object) -> None:
    """Take the part of a pool of coroutines: there are none."""


PoolMaker = Callable[[Executor, int, "deque[Run[Task]]", Callable[[], None]], Pool]
