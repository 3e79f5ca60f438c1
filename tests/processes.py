"""Processes that tests start, and what the kernel says of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from typing import Any


def state_of(pid: int) -> str:
    """Return the letter of a process's state as in proc(5); Z where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except OSError:
        return "Z"


def stands_still(pid: int) -> bool:
    """Tell whether a process was stopped, with all of its threads; one that is gone was."""
    tasks = [*Path(f"/proc/{pid}/task").glob("*")]
    return all(state_of(int(task.name)) in "TZ" for task in tasks)


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; a zombie does not."""
    return state_of(pid) not in "ZX"


def children_of(pid: int) -> list[int]:
    """Return the processes that one started, whatever their state; none are known but on Linux."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def group_of(leader: int) -> list[int]:
    """Return the processes of a group, with those whose parent is gone; Linux knows them alone."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it ended meanwhile
            # Behind the name, which may hold anything: state, parent, group (proc(5)).
            if int(file.read_text().rpartition(")")[2].split()[2]) == leader:
                found.append(int(file.parent.name))
    return found


def status_of(pid: int, run_folder: Path) -> dict[str, Any]:
    """Return what the status file of a supervisor says; nothing where there is none."""
    with suppress(OSError, ValueError):
        for file in run_folder.glob("*.json"):
            content: dict[str, Any] = json.loads(file.read_bytes())
            if content["pid"] == pid:
                return content
    return {}


def printed_elsewhere(program: str) -> str:
    """Run Python code in another process, with another hash seed; return the line it prints."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONHASHSEED": "4711", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


class Started(ABC):
    """A supervisor that ``start`` of the derived class started, as whoever runs it has it."""

    #: Seconds within which it has to end.
    patience = 60.0

    _process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The supervisor's."""
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the supervisor runs."""
        return self._process is not None and self._process.poll() is None

    @property
    @abstractmethod
    def log(self) -> str:
        """What it wrote to its log."""

    def signal(self, number: int) -> None:
        """Send a signal to the supervisor alone."""
        os.kill(self.pid, number)

    def exit_code(self, timeout: float = 0.0) -> int:
        """Wait for the end of the supervisor and return its exit code; 0 seconds: ``patience``."""
        assert self._process is not None
        timeout = timeout or self.patience
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout} s:\n{self.log}") from None
