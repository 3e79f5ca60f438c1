"""A real supervisor with real processes whose consumer is a stand-in, told how to behave.

What the processes do (consume these shards, drain, end) they write to a journal with times of the
monotonic clock, so that a test can tell who had which shard when.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from waiting import until

ROOT = Path(__file__).parents[2]
MAIN = Path(__file__).with_name("main.py")


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the journal."""

    at: float
    pid: int
    index: int
    what: str
    about: Any


class Supervised:
    """A supervisor in a process and a process group of its own, its log in a file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log_file = folder / "log"
        self.run_folder = folder / "run"
        self._journal = folder / "journal"
        self._process: subprocess.Popen[bytes] | None = None
        self.behave()

    def behave(self, **behaviour: object) -> None:
        """Tell every process, those to come and those that run, how to behave."""
        fresh = self.folder / "behaviour.new"
        fresh.write_text(json.dumps(behaviour))
        fresh.replace(self.folder / "behaviour.json")

    def start(self, environ: Mapping[str, str] | None = None, **terms: object) -> None:
        """Start the supervisor; ``terms`` are settings of the service."""
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(MAIN), json.dumps(terms)],
                cwd=self.folder,
                env={
                    **os.environ,
                    "PYTHONPATH": str(ROOT),
                    "QWORKER_RUN_DIR": str(self.run_folder),
                    **(environ or {}),
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
            )

    def start_ready(self, environ: Mapping[str, str] | None = None, **terms: object) -> None:
        """Start the supervisor and wait until every process consumes."""
        self.start(environ, **terms)
        until(lambda: self.status().get("ready"), 30, "every process is ready")

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def exit_code(self, timeout: float = 20.0) -> int:
        """Wait for the end of the supervisor; return its exit code."""
        assert self._process is not None
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout} s:\n{self.log}") from None

    def end(self) -> None:
        """Kill what is left, and let the log be seen where a test failed."""
        if self._process is not None:
            for pid in [self._process.pid, *self.pids_seen()]:
                if is_alive(pid):
                    os.kill(pid, signal.SIGKILL)
            self._process.wait(10)
        sys.stderr.write(self.log)

    @property
    def log(self) -> str:
        return self.log_file.read_text() if self.log_file.exists() else ""

    def status(self) -> dict[str, Any]:
        """Return what the status file says, or nothing where there is none."""
        with suppress(OSError):
            for file in self.run_folder.glob("*.json"):
                content: dict[str, Any] = json.loads(file.read_bytes())
                return content
        return {}

    def processes(self) -> dict[int, int]:
        """Return the pid of every process that is ready, by its index."""
        listed = self.status().get("processes", [])
        return {each["index"]: each["pid"] for each in listed if each["stage"] == "ready"}

    def journal(self, what: str = "") -> list[Entry]:
        """Return what the processes did, or of that one kind."""
        if not self._journal.exists():
            return []
        lines = self._journal.read_text().splitlines()
        entries = [Entry(**json.loads(line)) for line in lines]
        return [entry for entry in entries if what in ("", entry.what)]

    def pids_seen(self) -> set[int]:
        """Return the pids of all processes that ever said something."""
        return {entry.pid for entry in self.journal()}


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except OSError:
        return False
    return state not in "ZX"


def overlaps(journal: list[Entry]) -> list[tuple[int, int, int]]:
    """Return every shard that two processes consumed at once, with the two pids.

    A process consumes from its ``consume`` to its ``close``; one that was killed has no ``close``
    and ends with its last sign of life.
    """
    spans: dict[int, list[tuple[float, float, int]]] = {}
    last = {entry.pid: entry.at for entry in journal}
    closed = {entry.pid: entry.at for entry in journal if entry.what == "close"}
    for entry in journal:
        if entry.what == "consume":
            end = closed.get(entry.pid, last[entry.pid])
            for shard in entry.about:
                spans.setdefault(shard, []).append((entry.at, end, entry.pid))
    found = []
    for shard, held in spans.items():
        held.sort()
        for (_, end, first), (begin, _, second) in pairwise(held):
            if begin < end:
                found.append((shard, first, second))
    return found
