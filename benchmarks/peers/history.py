"""What publishers and handlers note, as the fault harness keeps it (``chaos.history``)."""

from __future__ import annotations

import threading
from pathlib import Path

from chaos import history
from chaos.history import Entry, History

#: What a line tells: the broker confirmed it, a handler began, a handler's effect happened.
CONFIRMED, BEGIN, EFFECT = "confirmed", "begin", "effect"

__all__ = ["BEGIN", "CONFIRMED", "EFFECT", "Entry", "History", "Writer"]


class Writer:
    """Appends lines; any number of processes and threads may share the file."""

    def __init__(self, file: Path) -> None:
        self._history = history.Writer(file)

    def note(self, what: str, id_: str, key: str, sequence: int) -> None:
        """Append a line, which is on the disk when this returns."""
        thread = threading.get_native_id()
        self._history.note(what, id=id_, key=key, sequence=sequence, thread=thread)
