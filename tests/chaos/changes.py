"""When the number of shards was changed: noted once it is known, and read by the judge."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterable, Mapping
from subprocess import Popen
from time import monotonic
from typing import Any

from chaos.history import BEGINS, IS_OVER, Entry, Writer
from worker.errors import UsageError


class Changes:
    """Notes changes in a history. Any thread may."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        #: When each command was begun that asks for one, by its pid; until it has come to its end.
        self._asked: dict[int, float] = {}
        #: Since when each change goes on, by the id that it has in the history.
        self._open: dict[str, float] = {}
        self._number = 0
        self._lock = threading.Lock()

    def ask(self, asked: Popen[bytes], since: float) -> None:
        """Remember a command that asks for another number of shards."""
        with self._lock:
            self._asked[asked.pid] = since

    def answered(self, asked: Popen[bytes]) -> bool:
        """Note what a command came to; tell whether a change may go on without it.

        What is refused is no change. Where one is had, so are all that were asked for before it:
        they were the same, or have come to nothing.
        """
        code = asked.poll()
        with self._lock:
            since = self._asked.pop(asked.pid)
            if code == UsageError.exit_code:
                return False
            self._number += 1
            id_ = f"change {self._number}"
            self._open[id_] = since
            self._writer.note("change", id=id_, at=since, detail=BEGINS)
            if code == 0:
                self._end(monotonic())
        return code != 0

    def told(self, at: float, status: Mapping[str, Any]) -> str:
        """Return what a service tells of a change, to who asked then; note it where none goes on.

        Then it is empty.
        """
        if status["reshard"] is not None:
            return json.dumps(status["reshard"])
        if status["generation"] is None:
            return "nobody knows how many shards there are"
        with self._lock:
            self._end(at)
        return ""

    def _end(self, at: float) -> None:
        for id_, since in [*self._open.items()]:
            if since <= at:
                del self._open[id_]
                self._writer.note("change", id=id_, at=at, detail=IS_OVER)


def changes_in(entries: Iterable[Entry]) -> list[tuple[float, float]]:
    """Return since when and until when the number of shards was changed."""
    changes = [entry for entry in entries if entry.what == "change"]
    over = {entry.id: entry.at for entry in changes if entry.detail == IS_OVER}
    return [(entry.at, over.get(entry.id, math.inf)) for entry in changes if entry.detail == BEGINS]
