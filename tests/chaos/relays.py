"""Relays of a stage's outbox: ``qworker outbox``, started again whenever one ends.

Their leases are in a file of their own, so that they can lose these while the service has its own:
one is stopped for longer than a lease lasts, or the file is locked for as long.
"""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from random import Random
from typing import Self

from acceptance.running import COMMAND
from chaos.books import Books
from chaos.stage import Stage
from chaos.workloads import BankOnDjango
from servers import Guard

_OPTIONS = ("--pause", "0.1", "--grace", "0.3", "--lease-ttl", "1", "--batch", "5")
_PATIENCE = 30.0
#: Seconds for which one is stopped, or the store is away: a lease lasts one, and who starts gives
#: the store two. And those between two times.
_LOST, _BETWEEN = (0.8, 1.8), (0.5, 3.0)


class Relays:
    """So many processes that share a lease. A context manager."""

    def __init__(self, stage: Stage, books: Books, guard: Guard, count: int) -> None:
        self._stage = stage
        self._books = books
        self._guard = guard
        self._count = count
        self._running: list[subprocess.Popen[bytes]] = []
        self._log = (stage.folder / "relays.log").open("ab")
        self._leases = stage.folder / "relays.db"
        #: How often which trouble was made.
        self.troubles = Counter[str]()
        #: How those ended that were not killed.
        self.wrong: list[str] = []

    def __enter__(self) -> Self:
        self.revive()
        return self

    def __exit__(self, *exc_info: object) -> None:
        for process in self._running:
            with suppress(ProcessLookupError):
                process.kill()
            process.wait()
            self._guard.forget(process.pid)
        self._log.close()

    def revive(self) -> None:
        """Start again who died."""
        for process in [*self._running]:
            if (code := process.poll()) is not None:
                self._running.remove(process)
                self._guard.forget(process.pid)
                if code != -signal.SIGKILL:
                    self.wrong.append(f"a relay ended with exit code {code}")
        leases = ("--leases", f"sqlite:///{self._leases}")
        environ = next(iter(self._stage.supervisors.values())).environ
        while len(self._running) < self._count:
            process = subprocess.Popen(
                [*COMMAND, "outbox", "--app", self._stage.workload.app, *_OPTIONS, *leases],
                cwd=self._stage.folder,
                env={**environ, "QWORKER_OUTBOX_URL": self._rows(), "SUPERVISOR": "relay"},
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
            )
            self._guard.watch(process.pid)
            self._running.append(process)

    @contextmanager
    def troubled(self) -> Iterator[None]:
        """Let them lose their lease, again and again, while the block runs."""
        over = threading.Event()
        thread = threading.Thread(target=self._trouble, args=(over, Random(1)))
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _trouble(self, over: threading.Event, random: Random) -> None:
        while not over.wait(random.uniform(*_BETWEEN)):
            seconds = random.uniform(*_LOST)
            running = [*self._running]
            if running and random.random() < 1 / 2:
                process = random.choice(running)
                with suppress(ProcessLookupError):
                    process.send_signal(signal.SIGSTOP)
                    over.wait(seconds)
                    process.send_signal(signal.SIGCONT)
                    self.troubles["stopped"] += 1
            else:
                with closing(sqlite3.connect(self._leases, isolation_level=None)) as leases:
                    leases.execute("BEGIN EXCLUSIVE")
                    over.wait(seconds)
                self.troubles["without a lease store"] += 1

    def _rows(self) -> str:
        """Return where the rows are, as the command is told."""
        is_django = isinstance(self._stage.workload, BankOnDjango)
        return "django://default" if is_django else self._books.where

    def drain(self) -> None:
        """End all of them in order."""
        self.revive()  # one may have died since, at the last point
        for process in self._running:
            process.terminate()
        for process in self._running:
            code = process.wait(_PATIENCE)
            # It had hardly begun, or died at a point that was armed a moment ago.
            if code not in (0, -signal.SIGTERM, -signal.SIGKILL):
                self.wrong.append(f"a relay ended with exit code {code}")
