"""A publisher that dies: a process of its own, killed while it sends, that nobody starts again.

    python -m chaos.mortal APP NAME URL HISTORY

What it had sent, and heard of no confirm, is *unknown* for ever: the broker may have it or not, and
nobody sends it once more.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

from chaos.history import Entry, History, Writer
from chaos.publishing import Publisher
from chaos.workloads import strays
from servers import Guard

TESTS = Path(__file__).parents[1]
#: Events a second, in batches: it is at one of them most of the time.
_RATE = 200.0
#: Seconds within which it has sent its last batch, unless the broker keeps it waiting.
_LATELY = 2.0


class Mortal:
    """Runs in a process of its own while its block runs, and is killed at the end of that."""

    def __init__(self, app: str, name: str, url: str, history: History, guard: Guard) -> None:
        self.name = name
        self._history = history
        self._guard = guard
        self._command = (sys.executable, "-m", "chaos.mortal", app, name, url, str(history.file))
        self._process: subprocess.Popen[bytes]

    @contextmanager
    def running(self) -> Iterator[None]:
        """Publish while the block runs."""
        self._process = subprocess.Popen(
            self._command, cwd=TESTS, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._guard.watch(self._process.pid)
        try:
            yield
        finally:
            self._process.kill()
            self._process.wait()
            self._guard.forget(self._process.pid)

    @property
    def pid(self) -> int:
        """The pid of its process."""
        return self._process.pid

    @property
    def has_published(self) -> bool:
        """Whether the broker has confirmed something of it."""
        return any(entry.what == "confirmed" for entry in self._mine())

    @property
    def is_amidst(self) -> bool:
        """Whether it is about to send something, or waits for its confirm."""
        since = monotonic() - _LATELY
        sent, heard = (
            [e.id for e in self._history.latest(what, since) if e.pid == self.pid]
            for what in ("invoke", "confirmed")
        )
        return bool(sent) and sent[-1] not in heard

    def left(self) -> list[Entry]:
        """Return what it was about to send, and heard nothing of."""
        mine = self._mine()
        confirmed = {entry.id for entry in mine if entry.what == "confirmed"}
        sent = {entry.id: entry for entry in mine if entry.what == "invoke"}
        return [entry for id_, entry in sent.items() if id_ not in confirmed]

    def _mine(self) -> list[Entry]:
        return [e for e in self._history.entries() if e.pid == self.pid]


def main() -> None:
    """Publish until somebody kills this process."""
    app, name, url, history = sys.argv[1:]
    Publisher(name, url, strays(app, name), Writer(Path(history)), rate=_RATE).start()
    signal.pause()


if __name__ == "__main__":
    main()
