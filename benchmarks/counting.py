"""The app that is measured: a handler that does nothing but note how many events it saw, and when.

The notes lie in a file that the measuring process reads afterwards; its name is in the
environment variable ``QWORKER_BENCH_NOTES``. Handlers run in threads of one process, which alone
writes its file.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from pathlib import Path

from worker import App, Event

app = App("bench")
#: count, wall clock at the first and last event, CPU seconds of the process at both.
NOTES = struct.Struct("qdddd")


class Tick(Event, name="bench.tick", key="key"):
    """About 120 bytes on the wire, of one of many keys."""

    key: str
    number: int
    padding: str = "." * 60


class Notes:
    """The file of one process, mapped."""

    def __init__(self, folder: Path) -> None:
        path = folder / f"{os.getpid()}.notes"
        path.write_bytes(b"\0" * NOTES.size)
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), NOTES.size)
        self._count = 0
        self._first = self._first_cpu = 0.0

    def note(self) -> None:
        """Count one event."""
        self._count += 1
        if self._count == 1:
            self._first, self._first_cpu = time.time(), time.process_time()
        # Every event costs one addition; the clocks are read for every 64th and near the end.
        if self._count % 64 == 0 or self._count < 64:  # noqa: PLR2004 - each of the first, then one in so many
            self._write()

    def _write(self) -> None:
        NOTES.pack_into(
            self._map, 0, self._count, self._first, time.time(), self._first_cpu,
            time.process_time(),
        )  # fmt: skip


_folder = os.environ.get("QWORKER_BENCH_NOTES")
notes = Notes(Path(_folder)) if _folder else None


@app.on(Tick)
def count(_event: Tick) -> None:
    """Count."""
    if notes is not None:
        notes.note()
