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

from processes import Started, is_alive
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


@dataclass(slots=True)
class Span:
    """The time in which one process consumed one shard."""

    shard: int
    pid: int
    fence: int
    begin: float
    end: float


class Supervised(Started):
    """A supervisor in a process and a process group of its own, its log in a file.

    Several with one ``folder`` share the journal of their processes, and how these behave.
    """

    patience = 20.0

    def __init__(self, folder: Path, name: str = "") -> None:
        self.folder = folder
        self.log_file = folder / f"{name}log"
        self.run_folder = folder / f"{name}run"
        self._journal = folder / "journal"
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
        """Start the supervisor and wait until every process is ready and all is consumed."""
        self.start(environ, **terms)
        until(lambda: self.status().get("ready"), 30, "every process is ready")
        shards = int(str(terms.get("shards", 4)))
        until(lambda: self.unowned(shards) == [], 30, "every shard is consumed")

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

    def dealt(self) -> dict[int, list[int]]:
        """Return the shards of every process that is ready, by its index, as far as is told."""
        listed = self.status().get("processes", [])
        return {each["index"]: each["shards"] for each in listed if each["stage"] == "ready"}

    def unowned(self, shards: int = 4) -> list[int]:
        """Return the shards that no living process has, by the journal."""
        had = {shard for shard, pid in holders(self.journal()).items() if is_alive(pid)}
        return sorted(set(range(shards)) - had)

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


def spans(journal: list[Entry]) -> dict[int, list[Span]]:
    """Return who consumed each shard from when to when, in order.

    A process consumes a shard from its ``take`` until it is ``given``, or all is closed; one that
    lives has not ended, and one that was killed ends with its last sign of life.
    """
    last = {entry.pid: entry.at for entry in journal}
    last |= dict.fromkeys(filter(is_alive, last), float("inf"))
    found: dict[int, list[Span]] = {}
    open_ones: dict[tuple[int, int], Span] = {}
    for entry in journal:
        match entry.what:
            case "take":
                for name, fence in entry.about.items():
                    span = Span(int(name), entry.pid, fence, entry.at, last[entry.pid])
                    found.setdefault(int(name), []).append(span)
                    open_ones[entry.pid, int(name)] = span
            case "given":
                for shard in entry.about:
                    if (entry.pid, shard) in open_ones:
                        open_ones.pop((entry.pid, shard)).end = entry.at
            case "close":
                for pid, shard in [key for key in open_ones if key[0] == entry.pid]:
                    open_ones.pop((pid, shard)).end = entry.at
    return found


def holders(journal: list[Entry]) -> dict[int, int]:
    """Return the pid of the process that took each shard last and has not given it."""
    given = {
        (entry.pid, shard): entry.at
        for entry in journal
        if entry.what == "given"
        for shard in entry.about
    }
    closed = {entry.pid for entry in journal if entry.what == "close"}
    return {
        shard: held[-1].pid
        for shard, held in spans(journal).items()
        if held[-1].pid not in closed and given.get((held[-1].pid, shard), 0.0) < held[-1].begin
    }


def overlaps(journal: list[Entry]) -> list[tuple[int, int, int]]:
    """Return every shard that two processes consumed at once, with the two pids."""
    found = []
    for shard, held in spans(journal).items():
        held.sort(key=lambda span: span.begin)
        for former, latter in pairwise(held):
            if latter.begin < former.end:
                found.append((shard, former.pid, latter.pid))
    return found


def fences(journal: list[Entry]) -> dict[int, list[int]]:
    """Return the fences with which each shard was taken, in order."""
    return {shard: [span.fence for span in held] for shard, held in spans(journal).items()}


def fell(journal: list[Entry]) -> list[int]:
    """Return the shards whose fence was ever lower than before."""
    return [shard for shard, seen in fences(journal).items() if seen != sorted(seen)]
