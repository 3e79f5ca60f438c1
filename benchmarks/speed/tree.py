"""A process and all that it started: the CPU that they used and the memory that they hold."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
#: Fields of /proc/PID/stat behind the name, as in proc(5): user and system time, own and of those
#: children that ended and were waited for; and when it started.
_UTIME, _CSTIME, _STARTED = 11, 14, 19
_KIBI = 1024


@dataclass(slots=True)
class Tree:
    """The processes under ``root``, which it is asked for again and again.

    A process whose parent ended belongs to it for as long as it lives, if it was seen before.
    """

    root: int
    _seen: dict[int, str] = field(default_factory=dict)

    def processes(self) -> list[int]:
        """Return those that are there."""
        found = dict.fromkeys([self.root, *self._seen])
        for pid in found.copy():
            _descend(pid, found)
        alive = []
        for pid in found:
            fields = _stat(pid)
            # Another process may have the number of one that ended.
            if fields and self._seen.setdefault(pid, fields[_STARTED]) == fields[_STARTED]:
                alive.append(pid)
            else:
                self._seen.pop(pid, None)
        return alive

    def cpu(self) -> float:
        """Return the CPU seconds of all, user and system, with those of children that ended."""
        ticks = 0
        for pid in self.processes():
            if fields := _stat(pid):
                ticks += sum(map(int, fields[_UTIME : _CSTIME + 1]))
        return ticks / _TICKS

    def pss(self) -> int:
        """Return the bytes of memory that all hold: shared pages count in proportion."""
        return sum(map(_pss, self.processes()))


def _descend(pid: int, found: dict[int, None]) -> None:
    """Add the descendants: a child is listed at the thread that started it."""
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = [int(word) for word in task.read_text().split()]
        except OSError:
            continue
        for child in children:
            found[child] = None
            _descend(child, found)


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return []


def _pss(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * _KIBI for line in lines if line.startswith("Pss:"))
