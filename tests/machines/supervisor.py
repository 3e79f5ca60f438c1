"""A supervisor under test: started, signalled, stopped and killed as a whole or in its parts."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from time import monotonic

from acceptance.running import Ledger, Service
from chaos.executions import Fault, Kind
from processes import children_of, group_of, is_alive, stands_still
from servers import Guard
from waiting import until


class Part(Enum):
    """Which processes of a supervisor something happens to."""

    SUPERVISOR = "the supervisor alone"
    CHILD = "one child alone"
    GROUP = "all of it"


class Supervisor(Service):
    """``qworker start`` by a name of its own, on the machine that ``entrance`` leads to.

    What a test does to it is noted as a Fault, for the checker.
    """

    def __init__(  # noqa: PLR0913 - what a supervisor is made of
        self,
        folder: Path,
        name: str,
        app: str,
        *,
        broker: str,
        dedup: str,
        ledger: Ledger,
        note: Callable[[Fault], None],
        guard: Guard,
        entrance: tuple[str, ...] = (),
        **settings: object,
    ) -> None:
        super().__init__(folder, app, broker=broker, dedup=dedup, **settings)
        self.name = name
        self.entrance = entrance
        self.environ["SUPERVISOR"] = name
        self.use_ledger(ledger)
        #: What a test sent to its starts: the pid, the number of the signal, and when.
        self.asked: list[tuple[int, int, float]] = []
        self._note = note
        self._guard = guard
        #: The start that was asked to drain; two faults may want that at once.
        self._draining: int | None = None
        self._asking = threading.Lock()

    def start(self, *options: str) -> None:
        """Run ``qworker start``; it dies with this process at the latest."""
        super().start(*options)
        self._guard.watch(self.pid)

    def end(self) -> None:
        """Kill what is left of it."""
        super().end()
        if self._process is not None:
            self._guard.forget(self.pid)

    def kill_rest(self) -> None:
        """Kill what is left of it, and show nothing."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self._process.wait(10)
            self._guard.forget(self.pid)

    @property
    def last_pid(self) -> int | None:
        """The pid of its last start, if there was one."""
        return None if self._process is None else self._process.pid

    def setting(self, name: str, default: float) -> float:
        """Return a number that it was started with."""
        return float(self.environ.get(f"QWORKER_{name.upper()}", default))

    def children(self) -> list[int]:
        """Return the pids of the processes that it runs, whatever their state."""
        return children_of(self.pid)

    def signal(self, number: int) -> None:
        """Send a signal to the supervisor alone."""
        self.asked.append((self.pid, number, monotonic()))
        super().signal(number)

    def terminate(self) -> None:
        """Ask it to drain, by SIGTERM: once, because a second one stops it at once."""
        with self._asking:
            if self._draining != self.pid:
                self._draining = self.pid
                self.signal(signal.SIGTERM)

    def drain(self) -> int:
        """Let it drain and return the exit code."""
        self.terminate()
        return self.exit_code()

    def kill(self, part: Part = Part.GROUP, among: Collection[int] | None = None) -> None:
        """End it at once with SIGKILL; ``among``: one child alone is one of these."""
        pids = [pid for pid in self._pids(part, among) if is_alive(pid)]
        since = monotonic()  # from now on somebody else may take over
        self._send(signal.SIGKILL, part, pids)
        self._note(Fault(Kind.KILL, self.name, since, monotonic(), frozenset(pids)))

    @contextmanager
    def paused(self, part: Part) -> Iterator[list[int]]:
        """Let it stand still (SIGSTOP) while the block runs; gives the pids that do."""
        pids = self._pids(part)
        since = monotonic()
        self._send(signal.SIGSTOP, part, pids)
        try:
            until(lambda: all(map(stands_still, pids)), message="they stand still")
            yield pids
        finally:
            self._note(Fault(Kind.PAUSE, self.name, since, monotonic(), frozenset(pids)))
            if part is Part.SUPERVISOR:  # its processes go on
                self._note(Fault(Kind.LAPSE, self.name, since, monotonic()))
            self._send(signal.SIGCONT, part, pids)

    def _pids(self, part: Part, among: Collection[int] | None = None) -> list[int]:
        match part:
            case Part.SUPERVISOR:
                return [self.pid]
            case Part.CHILD:
                return [pid for pid in self.children() if among is None or pid in among][:1]
            case Part.GROUP:
                # Whoever outlived its supervisor for a moment is struck too.
                return sorted({self.pid, *group_of(self.pid)})

    def _send(self, number: int, part: Part, pids: list[int]) -> None:
        if part is Part.GROUP:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, number)  # at one stroke: none sees that another is gone
            return
        for pid in pids:
            with suppress(ProcessLookupError):  # a supervisor may have killed what stood still
                os.kill(pid, number)
