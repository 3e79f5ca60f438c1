"""Probes of handlers with an outage: which of their tasks is tried, and when."""

from __future__ import annotations

from typing import TYPE_CHECKING

from worker.outage import Breaker

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from worker.sharding.lanes import Lanes, Run
    from worker.task import Task


class Probes:
    """The breakers of all handlers, and the probes that are out. I/O thread only.

    ``out`` are the runs that are claimed for or running.
    """

    def __init__(self, lanes: Lanes[Task], out: Collection[Run[Task]], threshold: int) -> None:
        self._lanes = lanes
        self._out = out
        self._threshold = threshold
        self._last: dict[str, Run[Task]] = {}
        self.breakers: dict[str, Breaker] = {}
        #: Handlers that get no probes.
        self.paused: Collection[str] = ()

    def breaker(self, handler: str) -> Breaker:
        """Return the breaker of a handler."""
        found = self.breakers.get(handler)
        if found is None:
            found = self.breakers[handler] = Breaker(self._threshold)
        return found

    def due(self, now: float) -> Iterator[Run[Task]]:
        """Yield the probes that it is time for: one task of a handler with an outage each."""
        for name, breaker in self._waiting():
            if now < breaker.next_probe:
                continue
            probe = self._lanes.take_probe(name, _progress)
            if probe is not None:
                self._judge(name, breaker, probe)
                self._last[name] = probe
                yield probe

    @property
    def next_due(self) -> float:
        """When a handler with an outage gets its next probe; infinity where none has one."""
        return min((b.next_probe for _, b in self._waiting()), default=float("inf"))

    def _waiting(self) -> Iterator[tuple[str, Breaker]]:
        for name, breaker in self.breakers.items():
            if (
                breaker.is_open
                and name not in self.paused
                and self._last.get(name) not in self._out
            ):
                yield name, breaker

    def _judge(self, name: str, breaker: Breaker, probe: Run[Task]) -> None:
        """Let the breaker look at what is left of its handler's messages."""
        tried, left = probe.tasks[0].spent, 1
        if tried:  # the probe is the best of all
            for lane, tasks in self._lanes.waiting_for(name):
                left += len(tasks)
                tried = tried and (lane is probe.lane or tasks[0].spent)
            running = (task for run in self._out for task in run.tasks)
            tried = tried and all(task.handler_name != name for task in running)
        breaker.judge(left, tried=tried)


def _progress(task: Task) -> int:
    """Rank tasks for a probe: it may be its later attempts that succeed."""
    return -1 if task.spent else task.attempt
