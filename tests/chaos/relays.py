"""Relays of a stage's outbox: ``qworker outbox``, started again whenever one ends."""

from __future__ import annotations

import signal
import subprocess
from contextlib import suppress
from typing import Self

from acceptance.running import COMMAND
from chaos.books import Books
from chaos.stage import Stage
from chaos.workloads import BankOnDjango
from servers import Guard

_OPTIONS = ("--pause", "0.1", "--grace", "0.3", "--lease-ttl", "1", "--batch", "5")
_PATIENCE = 30.0


class Relays:
    """So many processes that share a lease. A context manager."""

    def __init__(self, stage: Stage, books: Books, guard: Guard, count: int) -> None:
        self._stage = stage
        self._books = books
        self._guard = guard
        self._count = count
        self._running: list[subprocess.Popen[bytes]] = []
        self._log = (stage.folder / "relays.log").open("ab")
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
        environ = next(iter(self._stage.supervisors.values())).environ
        while len(self._running) < self._count:
            process = subprocess.Popen(
                [*COMMAND, "outbox", "--app", self._stage.workload.app, *_OPTIONS],
                cwd=self._stage.folder,
                env={**environ, "QWORKER_OUTBOX_URL": self._rows(), "SUPERVISOR": "relay"},
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
            )
            self._guard.watch(process.pid)
            self._running.append(process)

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
