"""Who died: as the kernel knows it while a trial runs, and as supervisors tell it in their logs.

The history has what a test did. What a process did by itself, or its supervisor to it, is seen from
outside: :class:`Watch` looks at all of them, again and again, and notes who is gone, and since
when. That excuses nothing by itself; a handler without an end has an excuse in it where the process
stood still, or was cut off (:mod:`chaos.excuses`). And a line of the history that nobody can read
has one in the death of its writer (:func:`lost_lines`).
"""

from __future__ import annotations

import json
import re
import signal
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from time import monotonic
from typing import NamedTuple, Self

from chaos.executions import Fault, Kind, gone_at
from chaos.history import Entry, Torn
from machines.supervisor import Supervisor
from processes import children_of, is_alive

#: Seconds between two looks. Who was born and died in between has run no handler.
_LOOK = 0.1

#: What a supervisor tells of the end of a process.
_ENDED = re.compile(r"process \d+ ended \(pid (\d+)\): (.+)")
#: How a process ends that nobody has to explain, since it was told to; and how it ends where
#: something is wrong around it: with work left behind, for want of a server, or by its supervisor.
_FINE = re.compile(r"exit code 0\b")
_TROUBLED = re.compile(r"exit code (75|4)\b|by the supervisor\b")
_KILLED = "killed by SIGKILL"
#: Seconds after a fault in which what ends may end of it: a drain takes 25 s at most.
_NEAR = 30.0
#: Seconds after a signal in which a supervisor ends processes that have yet to connect.
_CONNECTING = 5.0
#: What a process says that dies of itself; the last two are the interpreter's own, on a line alone.
_CRIES = ("the process cannot go on", "Fatal Python error", "Traceback (most recent call last):")

#: Who wrote a line of the history, and of which event, where that much of it is there.
_WRITER, _EVENT = re.compile(r'\{"pid": (\d+),'), re.compile(r'"id": "([^"]+)"')
#: Characters of such a piece that are told.
_TOLD = 120


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


class End(NamedTuple):
    """How a supervisor ended."""

    name: str
    pid: int
    code: int
    #: When that was seen.
    at: float
    #: The numbers of the signals that the test sent it.
    asked: Collection[int] = ()
    #: The last line of its log.
    said: str = ""

    def __str__(self) -> str:
        """Return what a reader of a story wants to know."""
        return f"{self.name} ended with exit code {self.code}: {self.said}"


def unexplained_ends(ends: Iterable[End], faults: Sequence[Fault]) -> list[str]:
    """Return the ends of supervisors that nobody caused (docs/operations.md has the exit codes)."""
    return [str(end) for end in ends if not _is_explained(end, faults)]


def _is_explained(end: End, faults: Sequence[Fault]) -> bool:
    is_near = _is_near(faults, end.name, end.at)
    times = [*end.asked].count(signal.SIGTERM)
    excuses = {
        0: times > 0,
        75: times > 0 and is_near,  # it left work behind
        130: times > 1,  # it was stopped at once
        4: is_near,  # there was no server,
        5: is_near,  # or no process got ready
        -9: any(f.kind is Kind.KILL and end.pid in (f.pids or ()) for f in faults),
        -15: times > 0,  # the signal came while the interpreter started
        -1: signal.SIGHUP in end.asked,
    }
    return excuses.get(end.code, False)


def _is_near(faults: Iterable[Fault], name: str, at: float) -> bool:
    """Tell whether a fault met a supervisor, or its processes, shortly before."""
    return any(
        fault.kind is not Kind.GONE
        and fault.supervisor in ("", name)
        and fault.since <= at <= gone_at(fault) + _NEAR
        for fault in faults
    )


def unexplained(
    logs: Iterable[tuple[str, str]],
    faults: Sequence[Fault],
    asked: Mapping[str, Collection[float]],
) -> list[str]:
    """Return the deaths that nobody caused, by what logs tell, each a supervisor's name and text.

    A death by SIGKILL needs a test that killed that very process. Who leaves work behind, finds no
    server, or is ended by its supervisor, needs a fault that met it, or its supervisor, before; or
    that somebody had just sent its supervisor a signal (``asked``, by name) and it was not yet
    there. An exit code of a failure has no excuse, nor has a traceback.
    """
    killed = {pid for f in faults if f.kind is Kind.KILL for pid in f.pids or ()}
    gone = {pid: f.until for f in faults if f.kind is Kind.GONE for pid in f.pids or ()}

    def is_explained(name: str, pid: int, how: str) -> bool:
        if _FINE.match(how) or (how.startswith(_KILLED) and pid in killed):
            return True
        if not _TROUBLED.match(how):
            return False
        at = gone.get(pid)
        if at is None:
            return True  # it came and went between two looks, so it did nothing
        just_asked = any(each <= at <= each + _CONNECTING for each in asked.get(name, ()))
        return _is_near(faults, name, at) or (how == "by the supervisor" and just_asked)

    return [
        f"{source}: {line}"
        for source, log in logs
        for line in _complaints(log, partial(is_explained, source.partition(" ")[0]))
    ]


def _complaints(log: str, is_explained: Callable[[int, str], bool]) -> Iterator[str]:
    for line in log.splitlines():
        said = line
        # What two processes dump of their stacks may leave a line of digits alone.
        with suppress(ValueError, TypeError, KeyError):
            said = str(json.loads(line)["message"])
        if (ended := _ENDED.match(said)) is not None:
            if not is_explained(int(ended[1]), ended[2]):
                yield said
        elif said.startswith(_CRIES):
            yield said


def lost_lines(
    torn: Iterable[Torn], entries: Sequence[Entry], faults: Iterable[Fault]
) -> list[str]:
    """Return the pieces of lines that no death has cut short, of all that a history has.

    A death cuts one line, and its process writes nothing behind that. Where a piece does not even
    say whose it is there has to be one that was killed, and has left no other.
    """
    ends = [(fault.kind, pid) for fault in faults for pid in fault.pids or ()]
    killed = {pid for kind, pid in ends if kind is Kind.KILL}
    dead = killed | {pid for kind, pid in ends if kind is Kind.GONE}
    last = {entry.pid: place for place, entry in enumerate(entries)}
    lost: list[str] = []
    nobodys: list[str] = []
    for piece in torn:
        writer, event = _WRITER.match(piece.text), _EVENT.search(piece.text)
        pid = int(writer[1]) if writer else 0
        text = f"{piece.text[:_TOLD]}…, which tells of {event[1] if event else 'nobody knows what'}"
        if not writer:
            nobodys.append(text)
        elif pid not in dead or last.get(pid, -1) >= piece.place:
            lost.append(text)
        dead.discard(pid)
    return lost + nobodys[len(killed & dead) :]


def logs_in(folder: Path) -> list[tuple[str, str]]:
    """Return the logs of all starts of the supervisors that have a folder there."""
    files = sorted(folder.glob("*/log.*"))
    return [(f"{file.parent.name} {file.name}", file.read_text()) for file in files]
