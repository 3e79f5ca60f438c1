"""The history of a run: what everybody did, noted in one file outside the system.

A line is one ``write`` to a file opened for appending, so lines of several processes never mix and
have one order. It is written before anything else happens, so what it tells outlives its writer;
``fdatasync`` comes before that too, so it outlives the machine. But for two kinds, which are in the
kernel's hands alone: what is recorded, and the fault of who dies at a crash point, whose other
threads would go on meanwhile. No power is cut here.

A SIGKILL in the midst of a ``write`` may cut it short, at the end of a page of the file. So each
line also begins with a newline, which ends what somebody left unfinished; and such a piece counts
as never written, which is what a death a moment earlier would have made of it. It is kept apart
(:attr:`History.torn`): a piece that no death explains is a line that was lost
(:func:`chaos.deaths.lost_lines`).

Times are of CLOCK_MONOTONIC, which all processes and network namespaces of a machine share, and
which no step of the clock moves.

==========  =======================================================================================
invoke      a publisher is about to send an event
confirmed   the broker has it
unknown     no confirm came: the broker may have it, or not
abandoned   no confirm came, and its publisher is dead: nobody will ever know
begin       a handler was called
effect      what it is for happened
end         it returned
failed      it raised; ``detail`` says what
recorded    the dedup store has it done; ``detail`` is a list of handlers and ids as JSON
change      another number of shards is asked for, or is had: ``detail`` is "begins" or "is over"
fault       the test made trouble: ``detail`` is a :class:`~chaos.executions.Fault` as JSON
blow        the schedule threw a fault: ``detail`` is a :class:`~chaos.blows.Thrown` as JSON
==========  =======================================================================================
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

#: What the detail of a change of the number of shards says.
BEGINS, IS_OVER = "begins", "is over"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A line of the history. What does not apply to its kind is empty."""

    what: str
    at: float
    pid: int = 0
    #: The thread, where one process begins an event more than once at a time.
    thread: int = 0
    id: str = ""
    key: str = ""
    #: The place of the event among those of its key, from 0; -1: nobody said.
    sequence: int = -1
    handler: str = ""
    #: The number of the handler's call in its process, which no other call there has; 0: nobody
    #: counted.
    run: int = 0
    attempt: int = 0
    shard: int = -1
    fence: int = 0
    #: The name of the service's place, where the test gave it one.
    supervisor: str = ""
    #: The pid of the supervisor: which of the lives of that place it is; 0: nobody said.
    life: int = 0
    detail: str = ""
    #: What an event asks of its handlers: to fail, and how (:mod:`chaos.apps.ledger`).
    order: str = ""


class Torn(NamedTuple):
    """A piece of a line that nobody can read."""

    text: str
    #: How many lines were read before it.
    place: int


class Writer:
    """Appends to a history. Any thread may."""

    def __init__(self, file: Path, *, sync: bool = True) -> None:
        self._file = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._sync = sync

    def note(self, what: str, **facts: Any) -> None:
        """Append one line; it is on the disk when this returns. ``facts`` are an Entry's."""
        self.note_all([{"what": what, **facts}])

    def note_all(self, entries: Iterable[dict[str, Any]]) -> None:
        """Append lines, of one process and now. Raises OSError where they cannot be written."""
        own = {"pid": os.getpid(), "at": time.monotonic()}
        lines = [f"\n{json.dumps(own | entry)}\n" for entry in entries]
        left = "".join(lines).encode()
        while left:  # a file takes all at once, but where there is no more room, which raises then
            left = left[os.write(self._file, left) :]
        if self._sync:
            os.fdatasync(self._file)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


class History:
    """Reads a history while others append to it. Any thread may."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._entries: list[Entry] = []
        self._torn: list[Torn] = []
        self._position = 0
        self._reading = threading.Lock()

    def entries(self, what: str = "", handler: str = "") -> list[Entry]:
        """Return the lines of that kind and handler, in the order of writing."""
        self._read()
        return [e for e in self._entries if what in ("", e.what) and handler in ("", e.handler)]

    def latest(self, what: str, since: float) -> list[Entry]:
        """Return the lines of that kind from ``since`` on, or nearly all: who wrote may be late."""
        self._read()
        found: list[Entry] = []
        for entry in reversed(self._entries):
            if entry.at < since:
                break
            if entry.what == what:
                found.append(entry)
        return found[::-1]

    @property
    def torn(self) -> list[Torn]:
        """What cannot be read: what deaths have cut short. The last line may be on its way."""
        self._read()
        return [*self._torn]

    def _read(self) -> None:
        if not self.file.exists():
            return
        with self._reading, self.file.open("rb") as file:
            file.seek(self._position)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                if line.strip():
                    try:
                        self._entries.append(Entry(**json.loads(line)))
                    except json.JSONDecodeError:
                        self._torn.append(Torn(line.decode().strip(), len(self._entries)))
                self._position += len(line)
