"""Who died: as the kernel knows it while a trial runs, and as supervisors tell it in their logs.

The history has what a test did. What a process did by itself, or its supervisor to it, is seen from
outside: :class:`Watch` looks at all of them, again and again, and notes who is gone, and since
when. That excuses nothing by itself; a handler without an end has an excuse in it where the process
stood still, or was cut off (:mod:`chaos.excuses`).
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Self

from chaos.executions import Fault, Kind
from machines.supervisor import Supervisor
from processes import children_of, is_alive

#: Seconds between two looks. Who was born and died in between has run no handler.
_LOOK = 0.1

#: What a supervisor tells of the end of a process.
_ENDED = re.compile(r"process \d+ ended \(pid (\d+)\): (.+)")
#: How a process ends that nobody has to explain: as it was told to, drained or with work left
#: behind (those handlers have no end, and that is judged); for want of a server; or since its
#: supervisor killed it, which says why.
_FINE = re.compile(r"exit code (0|75|4)\b|by the supervisor\b")
_KILLED = "killed by SIGKILL"
#: What a process says that dies of itself; the last two are the interpreter's own, on a line alone.
_CRIES = ("the process cannot go on", "Fatal Python error", "Traceback (most recent call last):")


class Watch:
    """Notes deaths of supervisors and their children while its block runs."""

    def __init__(
        self, supervisors: Callable[[], Iterable[Supervisor]], note: Callable[[Fault], None]
    ) -> None:
        self._supervisors = supervisors
        self._note = note
        #: By pid: whose it is, and when it was seen alive.
        self._alive: dict[int, tuple[str, float]] = {}
        self._gone = set[int]()
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run, name="deaths", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._ends.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ends.wait(_LOOK):
            self.look()

    def look(self) -> None:
        """Note who is gone since the last look."""
        now = monotonic()
        for supervisor in [*self._supervisors()]:
            if (pid := supervisor.last_pid) is not None:
                for each in {pid, *children_of(pid)} - self._gone:
                    self._alive.setdefault(each, (supervisor.name, now))
        for pid, (name, seen) in [*self._alive.items()]:
            if is_alive(pid):
                self._alive[pid] = name, now
            else:
                del self._alive[pid]
                self._gone.add(pid)
                self._note(Fault(Kind.GONE, name, seen, monotonic(), frozenset({pid})))


def unexplained(logs: Iterable[tuple[str, str]], faults: Iterable[Fault]) -> list[str]:
    """Return the deaths that nobody caused, by what logs tell, each a supervisor's name and text.

    A death by SIGKILL needs a test that killed that very process; an exit code of a failure has no
    excuse, nor has a traceback.
    """
    killed: set[int] = set()
    for fault in faults:
        if fault.kind is Kind.KILL:
            killed |= fault.pids or frozenset()
    return [f"{name}: {line}" for name, log in logs for line in _complaints(log, killed)]


def _complaints(log: str, killed: set[int]) -> Iterator[str]:
    for line in log.splitlines():
        said = line
        with suppress(ValueError):
            said = str(json.loads(line)["message"])
        if (ended := _ENDED.match(said)) is not None:
            pid, how = int(ended[1]), ended[2]
            if not (_FINE.match(how) or (how.startswith(_KILLED) and pid in killed)):
                yield said
        elif said.startswith(_CRIES):
            yield said


def logs_in(folder: Path) -> list[tuple[str, str]]:
    """Return the logs of all starts of the supervisors that have a folder there."""
    files = sorted(folder.glob("*/log.*"))
    return [(f"{file.parent.name} {file.name}", file.read_text()) for file in files]
