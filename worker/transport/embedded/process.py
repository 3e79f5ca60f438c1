"""Which process a connection belongs to, and whether that process is known to be dead.

A number alone does not name a process: numbers are used again, and mean something else in another
container. So a process is its number, its start time, its PID namespace and the boot of its machine
(Linux: proc(5)). Where one of them cannot be had, death is not known and a lease decides.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
#: Of /proc/PID/stat, counted behind the name in brackets: state and start time.
_STATE, _STARTED = 0, 19
#: Zombie and dead: nothing of it will run again.
_DEAD_STATES = frozenset("ZXx")


@dataclass(frozen=True, slots=True)
class Process:
    """One life of one process. Empty text stands for unknown."""

    pid: int
    started: str
    namespace: str
    boot: str

    @classmethod
    def current(cls) -> Process:
        """Return this process."""
        stat = _stat(os.getpid())
        return cls(
            pid=os.getpid(),
            started=stat[_STARTED] if stat else "",
            # Only Linux has namespaces; elsewhere all processes are in the same one.
            namespace=_link(_PROC / "self" / "ns" / "pid") if sys.platform == "linux" else "only",
            boot=_text(_PROC / "sys" / "kernel" / "random" / "boot_id"),
        )

    def is_visible(self, here: Process) -> bool:
        """Tell whether ``here``, the current process, can see if this one is alive."""
        return self.boot == here.boot and bool(self.namespace) and self.namespace == here.namespace

    def is_known_dead(self, here: Process) -> bool:
        """Tell whether this process is dead for sure, as seen by ``here``, the current one.

        A zombie is dead: it runs no more, whether or not its parent has taken note.
        """
        if self.boot != here.boot:
            return bool(self.boot and here.boot)
        if not self.is_visible(here):
            return False
        if self.pid == here.pid:
            return self.started != here.started
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass  # it exists, and is another user's
        stat = _stat(self.pid)
        if stat is None:
            return False
        return stat[_STATE] in _DEAD_STATES or bool(self.started and stat[_STARTED] != self.started)


def _stat(pid: int) -> list[str] | None:
    """Return the fields of /proc/PID/stat behind the name, or None where it cannot be read."""
    text = _text(_PROC / str(pid) / "stat")
    # The name may hold brackets and blanks itself; the last bracket ends it.
    fields = text.rpartition(")")[2].split()
    return fields if len(fields) > _STARTED else None


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace").strip()
    except OSError:
        return ""


def _link(path: Path) -> str:
    try:
        return str(path.readlink())
    except OSError:
        return ""
