"""Takes the steps of a plan in a thread, one after the other, while the process consumes."""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from typing import TYPE_CHECKING, Protocol

from worker.config import mask_url
from worker.errors import LeasesUnavailable
from worker.supervisor.control import Followed, Stepped

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.sharding.generations import Plan

logger = logging.getLogger("worker.supervisor.child")


class Steps(Protocol):
    """The steps of a plan on the broker: ``worker.resharding.Resharding``. One thread at a time."""

    def declare(self, plan: Plan) -> None:
        """Declare what every process does from now on."""

    def take(self, plan: Plan) -> bool:
        """Take the next step of the plan; tell whether it is done."""


class Stepper:
    """A thread that waits for steps. Its methods are for the process's main thread.

    Nothing is declared, and no step taken, by a plan that may not be the one of now: where this
    process was away for so long that it is not ``trusted`` any more, or was told another plan
    since. (What an earlier plan declares may be removed by now, and nobody would remove it again.)
    Both are looked at in the thread, right before it begins.

    ``trusted`` and ``wake`` are called in the thread; ``wake`` when there is an answer.
    """

    def __init__(
        self, steps: Steps, *, trusted: Callable[[], bool], wake: Callable[[], None]
    ) -> None:
        self._steps = steps
        self._trusted = trusted
        self._wake = wake
        #: What was told last.
        self._plan: Plan | None = None
        self._asked: queue.SimpleQueue[Callable[[], Followed | Stepped]] = queue.SimpleQueue()
        self._answers: deque[Followed | Stepped] = deque()
        self._thread: threading.Thread | None = None

    def follow(self, plan: Plan, version: int) -> None:
        """Declare what ``plan`` says."""
        self._plan = plan
        self._ask(lambda: self._follow(plan, version))

    def step(self, plan: Plan, version: int) -> None:
        """Take the next step of ``plan``."""
        self._plan = plan
        self._ask(lambda: self._step(plan, version))

    def answers(self) -> list[Followed | Stepped]:
        """Return what came of the steps since the last call."""
        found = []
        while self._answers:
            found.append(self._answers.popleft())
        return found

    def _ask(self, step: Callable[[], Followed | Stepped]) -> None:
        self._asked.put(step)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="qworker-steps", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            self._take(self._asked.get())

    def _take(self, step: Callable[[], Followed | Stepped]) -> None:
        self._answers.append(step())
        self._wake()

    def _follow(self, plan: Plan, version: int) -> Followed:
        try:
            self._check(plan)
            self._steps.declare(plan)
        except Exception as error:  # noqa: BLE001 - the supervisor asks again
            return Followed(version, _told(error))
        return Followed(version)

    def _step(self, plan: Plan, version: int) -> Stepped:
        try:
            self._check(plan)
            return Stepped(version, self._steps.take(plan))
        except Exception as error:  # noqa: BLE001 - the supervisor asks again
            return Stepped(version, False, _told(error))

    def _check(self, plan: Plan) -> None:
        if plan != self._plan:
            raise LeasesUnavailable("there is another plan by now")
        if not self._trusted():
            raise LeasesUnavailable("not trusted: the supervisor was not heard of for too long")


def _told(error: Exception) -> str:
    return mask_url(f"{type(error).__name__}: {error}")
