"""A service as a user runs it: the command line in a process of its own, and its children."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import worker
from worker.demo.ledger import Kill
from worker.supervisor.status import read_status

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from random import Random

    from worker.supervisor.status import Status

_STOP_SECONDS = 10.0
_LOG_TAIL = 40
_PACKAGE_FOLDER = Path(worker.__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Process:
    """A process of the service, as the status file tells of it."""

    index: int
    pid: int
    stage: str
    shards: tuple[int, ...]


def processes_of(status: Status | None) -> list[Process]:
    """Return the processes that there are."""
    listed: Sequence[Mapping[str, Any]] = status.processes if status is not None else ()
    return [Process(p["index"], p["pid"], p["stage"], tuple(p["shards"])) for p in listed]


def clean_environment() -> dict[str, str]:
    """Return the environment without settings of this package."""
    kept = "QWORKER_RUN_DIR"  # where this process looks for the status file
    return {n: v for n, v in os.environ.items() if not n.startswith("QWORKER_") or n == kept}


class Service:
    """Starts ``qworker start``, looks at its status file, and may treat it badly.

    It runs in ``folder``, so that relative files and settings are those of that folder, with no
    ``QWORKER_…`` variable but those of ``environ``. Its output goes to ``folder/NAME.log``.
    """

    def __init__(
        self,
        app: str,
        folder: Path,
        options: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.app = app
        self.log_file = folder / f"{app.rpartition('.')[2]}.log"
        self._folder = folder
        self._options = (*options, "--log-format", "text")
        self._environ = dict(environ or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._killed: set[int] = set()

    def start(self) -> None:
        """Start the supervisor, which starts its processes."""
        command = [sys.executable, "-P", "-m", "worker.cli", "start", "--app", self.app]
        kept = clean_environment()
        paths = (self._environ.get("PYTHONPATH"), kept.get("PYTHONPATH"), str(_PACKAGE_FOLDER))
        environ = {**kept, **self._environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - this very interpreter
                [*command, *self._options],
                cwd=self._folder,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,  # Ctrl-C is for the one who watches
            )

    @property
    def exit_code(self) -> int | None:
        """The exit code of the supervisor; None while it runs, or before it was started."""
        return None if self._process is None else self._process.poll()

    @property
    def running(self) -> bool:
        """Whether the supervisor runs."""
        return self._process is not None and self._process.poll() is None

    def status(self) -> Status | None:
        """Return what the supervisor tells of itself; None where it does not, or not yet."""
        if self._process is None:
            return None
        return next((s for s in read_status() if s.pid == self._process.pid), None)

    def ready(self) -> bool:
        """Tell whether every process consumes."""
        status = self.status()
        return status is not None and status.ready

    def kill_one(self, random: Random) -> Kill | None:
        """Kill one of the processes with SIGKILL; None where none is there to be killed."""
        processes = processes_of(self.status())
        living = [p.pid for p in processes if p.stage == "ready" and p.pid not in self._killed]
        if not living:
            return None
        victim = random.choice(living)
        self._killed.add(victim)
        kill = Kill(victim, monotonic())
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            return None
        return kill

    def mourned(self) -> bool:
        """Tell whether the supervisor has noticed the end of everyone who was killed here.

        A drain that begins before that finds work abandoned, and says so by its exit code.
        """
        return not any(process.pid in self._killed for process in processes_of(self.status()))

    def terminate(self) -> None:
        """Ask the supervisor to drain; it ends when that is done."""
        if self._process is not None and self.running:
            self._process.send_signal(signal.SIGTERM)

    def end(self) -> None:
        """End it in any case: at once where draining takes too long. Idempotent."""
        if self._process is None:
            return
        self.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGTERM)  # the second one stops at once
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                # Its children notice that it is gone, and drain.
                self._process.kill()
                self._process.wait()

    def log_tail(self) -> list[str]:
        """Return the last lines of the log."""
        if not self.log_file.exists():
            return []
        return self.log_file.read_text(errors="replace").splitlines()[-_LOG_TAIL:]
