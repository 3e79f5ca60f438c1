"""What publishers and handlers note: lines in a file, each on the disk before anything goes on."""

from __future__ import annotations

import json
import os
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

#: What a line tells: the broker confirmed it, a handler began, a handler's effect happened.
CONFIRMED, BEGIN, EFFECT = "confirmed", "begin", "effect"


@dataclass(frozen=True, slots=True)
class Entry:
    """A line."""

    what: str
    ident: str
    key: str
    sequence: int
    pid: int
    thread: int
    at: float


class Writer:
    """Appends lines; any number of processes and threads may share the file."""

    def __init__(self, file: Path) -> None:
        self._file = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def note(self, what: str, ident: str, key: str, sequence: int) -> None:
        """Append a line, which is on the disk when this returns."""
        entry = Entry(
            what, ident, key, sequence, os.getpid(), threading.get_native_id(), time.time()
        )
        # One write: lines of others do not come in between.
        os.write(self._file, json.dumps(asdict(entry)).encode() + b"\n")
        os.fdatasync(self._file)


class Reader:
    """Reads the file while it grows."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._position = 0
        self._entries: list[Entry] = []

    def entries(self) -> list[Entry]:
        """Return all lines so far, in the order of writing."""
        if self._file.exists():
            with self._file.open("rb") as file:
                file.seek(self._position)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._entries.append(Entry(**json.loads(line)))
                    self._position += len(line)
        return self._entries
