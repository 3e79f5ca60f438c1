"""A worker as systemd runs it: started again when it ends, and what it leaves behind is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Self

from processes import is_alive
from servers import Guard
from waiting import until

#: Seconds between an end and the next start.
_RESTART = 1.0
#: Seconds that it may take to end after SIGTERM.
_STOP = 60.0
_LOOK = 0.05


class Unit:
    """Starts with the block and ends with it. What ``restart`` and ``kill`` end is asked for."""

    #: The one of the last start.
    _process: subprocess.Popen[bytes]

    def __init__(
        self,
        command: Sequence[str],
        folder: Path,
        environ: Mapping[str, str],
        guard: Guard,
    ) -> None:
        self._command = command
        self._folder = folder
        self._environ = environ
        self._guard = guard
        self._ending = threading.Event()
        self._asked = False
        self._keeper = threading.Thread(target=self._keep, name="keeper", daemon=True)
        #: How often it ended although nobody had asked for it.
        self.ends = 0
        #: How often it did not end in time after SIGTERM.
        self.overruns = 0

    def __enter__(self) -> Self:
        self._start()
        self._keeper.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.end()

    def end(self) -> None:
        """Kill what is left of it, and start it no more."""
        self._ending.set()
        self._keeper.join()
        self._kill_group()

    @property
    def pid(self) -> int:
        """The main process."""
        return self._process.pid

    def kill(self) -> None:
        """Kill all its processes at once; it is started again."""
        self._await_start()
        self._asked = True
        self._kill_group()

    def restart(self) -> None:
        """Send SIGTERM to its main process and wait for the end; it is started again."""
        process = self._await_start()
        self._asked = True
        process.terminate()
        try:
            process.wait(_STOP)
        except subprocess.TimeoutExpired:
            self.overruns += 1
            self._kill_group()

    def _await_start(self) -> subprocess.Popen[bytes]:
        until(lambda: self._process.poll() is None, 10 * _RESTART)
        return self._process

    def _start(self) -> None:
        with (self._folder / "log").open("ab") as log:
            self._process = spawn(self._command, self._folder, self._environ, log)
        self._guard.watch(self._process.pid)

    def _keep(self) -> None:
        while not self._ending.wait(_LOOK):
            if self._process.poll() is None:
                continue
            self.ends += not self._asked
            self._asked = False
            self._kill_group()
            if self._ending.wait(_RESTART):
                return
            self._start()

    def _kill_group(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._guard.forget(self._process.pid)


def spawn(
    command: Sequence[str], folder: Path, environ: Mapping[str, str], log: IO[bytes]
) -> subprocess.Popen[bytes]:
    """Start a command in a process group of its own."""
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        process_group=0,
    )


def kill_process(pid: int) -> None:
    """Kill one process."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


class Frozen:
    """A process that stands still (SIGSTOP) while the block runs."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def __enter__(self) -> Self:
        if is_alive(self._pid):
            os.kill(self._pid, signal.SIGSTOP)
        return self

    def __exit__(self, *exc_info: object) -> None:
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGCONT)
