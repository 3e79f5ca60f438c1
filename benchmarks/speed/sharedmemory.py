"""What handlers note where the measuring process can see it: counts, and when each event came.

Both are files that all processes map. A thread counts in a slot of its own, so no lock is taken and
no addition is lost; a lock is held once in a thread's life, when it takes its slot.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import threading
from array import array
from pathlib import Path

#: Threads that may count in one run.
_SLOTS = 4096
#: Slots lie on cache lines of their own: 8 numbers of 8 bytes.
_LINE = 8
_BYTES = (1 + _SLOTS) * _LINE * 8


class Counts:
    """The counting of handlers.

    The first line of the file says how many slots are taken; each other one has a thread's count,
    and its process.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("r+b")
        self._view = memoryview(mmap.mmap(self._file.fileno(), _BYTES)).cast("q")
        self._reset()
        # A child that is forked would count in the slot of the thread that forked it.
        os.register_at_fork(after_in_child=self._reset)

    @classmethod
    def create(cls, path: Path) -> Counts:
        """Make the file, with nothing counted."""
        with path.open("wb") as file:
            file.truncate(_BYTES)
        return cls(path)

    def count(self) -> None:
        """Count one event."""
        try:
            slot = self._own.slot
        except AttributeError:
            slot = self._own.slot = self._take()
        self._view[slot] += 1

    def total(self) -> int:
        """Return what all threads have counted."""
        end = (1 + self._view[0]) * _LINE
        return sum(self._view[_LINE:end:_LINE])

    def processes(self) -> int:
        """Return how many processes have counted."""
        end = (1 + self._view[0]) * _LINE
        return len({pid for pid in self._view[_LINE + 1 : end : _LINE] if pid})

    def _take(self) -> int:
        with self._lock:
            # The kernel's lock is the process's: it keeps out other processes alone.
            fcntl.lockf(self._file, fcntl.LOCK_EX)
            try:
                self._view[0] += 1
                number = self._view[0]
            finally:
                fcntl.lockf(self._file, fcntl.LOCK_UN)
        if number > _SLOTS:
            raise RuntimeError(f"more than {_SLOTS} threads ran handlers")
        self._view[number * _LINE + 1] = os.getpid()
        return number * _LINE

    def _reset(self) -> None:
        self._own = threading.local()
        self._lock = threading.Lock()


class Moments:
    """A moment for each event of a stream, by its number: 0.0 until it is noted."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._view = memoryview(mmap.mmap(file.fileno(), 0)).cast("d")

    @classmethod
    def create(cls, path: Path, events: int) -> Moments:
        """Make the file, with nothing noted."""
        path.write_bytes(bytes(8 * events))
        return cls(path)

    def note(self, number: int, moment: float) -> None:
        """Note when the event came, by a clock that all processes share."""
        self._view[number] = moment

    def all(self) -> array[float]:
        """Return every moment."""
        return array("d", self._view.tobytes())
