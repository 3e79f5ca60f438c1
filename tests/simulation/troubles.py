"""Trouble at the seams: a process dies, or is cut off, at a call to broker, store or lease store.

Each call passes :meth:`Seams.before` and :meth:`Seams.after`. A process that is *doomed* dies at
its n-th call from now: before the call, or after it took effect and before the answer came. One
that is *cut off* gets an error instead, at either side of the effect.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from random import Random
from typing import TYPE_CHECKING, TypeVar

from amqp.exceptions import RecoverableConnectionError

from worker.errors import DedupUnavailable, LeasesUnavailable

if TYPE_CHECKING:
    from simulation.ledger import Attempt

T = TypeVar("T")

#: What a process calls, and what it is told where it is cut off from it.
STORE, LEASES, BROKER = "store", "leases", "broker"
_ERRORS: dict[str, Callable[[str], Exception]] = {
    STORE: DedupUnavailable,
    LEASES: LeasesUnavailable,
    BROKER: RecoverableConnectionError,
}


class Killed(BaseException):
    """The process that runs is dead: nothing of it runs any more. Nobody catches this."""


class Cut(Enum):
    """On which side of their effect the calls of a process fail."""

    BEFORE = "before"
    AFTER = "after"
    EITHER = "either"


class Process:
    """What can be killed, paused and cut off: a supervisor or one of its children."""

    def __init__(self, name: str, member: str, pid: int) -> None:
        self.name = name
        self.member = member
        self.pid = pid
        self.dead = False
        self.paused = False
        #: It dies at this call from now, after its effect where ``dies_after``.
        self.doom = 0
        self.dies_after = False
        self.cuts: dict[str, Cut] = {}

    def __repr__(self) -> str:
        return self.name

    def attempts(self) -> Sequence[Attempt]:
        """Return the handlers that run in it."""
        return ()


class Seams:
    """Every call of the process that runs goes through here. ``bury`` is told who died."""

    def __init__(self, random: Random, bury: Callable[[Process, str], None]) -> None:
        #: Whose code runs; None where it is the simulation's own.
        self.running: Process | None = None
        self.trace: list[str] = []
        self._random = random
        self._bury = bury

    def before(self, where: str) -> None:
        process = self.running
        if process is None:
            return
        if process.dead:
            raise Killed
        self.trace.append(f"{process.name} {where}")
        if process.doom:
            process.doom -= 1
            if not process.doom:
                if not process.dies_after:
                    self._die(process, f"before a call to the {where}")
                process.doom = -1
        if process.cuts:
            cut = process.cuts.get(where)
            if cut is Cut.BEFORE or (cut is Cut.EITHER and self._random.random() < 0.5):
                self._fail(process, where)

    def after(self, where: str) -> None:
        process = self.running
        if process is None:
            return
        if process.doom < 0:
            self._die(process, f"after a call to the {where}")
        if process.cuts:
            cut = process.cuts.get(where)
            if cut is Cut.AFTER or cut is Cut.EITHER:
                self._fail(process, where)

    def reach(self, where: str, call: Callable[[], T]) -> T:
        """Make a call of the process that runs."""
        if self.running is None:
            return call()
        self.before(where)
        answer = call()
        self.after(where)
        return answer

    def _die(self, process: Process, how: str) -> None:
        process.doom = 0
        self._bury(process, how)
        raise Killed

    def _fail(self, process: Process, where: str) -> None:
        if process.doom < 0:  # it dies all the same, with the error on its way
            self._die(process, f"at a failed call to the {where}")
        raise _ERRORS[where](f"{process.name} is cut off from the {where}")
