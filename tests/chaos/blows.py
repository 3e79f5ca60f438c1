"""What a schedule threw in a trial: each blow, from when to when, and whom it met.

The judge takes no excuse from it, only that somebody was met at all. It reads the faults of the
history, and has no use for what excuses nothing, as a SIGTERM or a supervisor that joins; who wants
to know what a trial was reads these.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from time import monotonic

from chaos.history import Entry, Writer

#: Who is met by what befalls a server.
EVERYBODY = "everybody"


@dataclass(frozen=True, slots=True)
class Thrown:
    """A blow of the schedule, as it was carried out."""

    #: Its name among the faults (:data:`chaos.nemesis.FAULTS`).
    fault: str
    since: float
    until: float
    #: Supervisors, or EVERYBODY, or crash points that were armed. Empty: it did nothing, since
    #: nobody was there, or at work, or free.
    met: tuple[str, ...] = ()

    def dump(self) -> str:
        """Return it as the ``detail`` of an entry."""
        return json.dumps(asdict(self))

    @classmethod
    def load(cls, text: str) -> Thrown:
        """Return what ``dump`` told of."""
        facts = json.loads(text)
        return cls(facts["fault"], facts["since"], facts["until"], tuple(facts["met"]))


class Blows:
    """Notes blows in a history. Each has a thread of its own."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._mine = threading.local()

    @contextmanager
    def blow(self, fault: str) -> Iterator[None]:
        """Note a blow when it is over, however it ends."""
        met: list[str] = []
        self._mine.met = met
        since = monotonic()
        try:
            yield
        finally:
            del self._mine.met
            told = Thrown(fault, since, monotonic(), tuple(met))
            self._writer.note("blow", detail=told.dump())

    def meets(self, *whom: str) -> None:
        """Tell whom the blow of this thread met; nothing happens where there is none."""
        met: list[str] | None = getattr(self._mine, "met", None)
        if met is not None:
            met += [each for each in whom if each not in met]


def thrown(entries: Iterable[Entry]) -> list[Thrown]:
    """Return the blows that a history tells of, in the order in which they began."""
    blows = (Thrown.load(entry.detail) for entry in entries if entry.what == "blow")
    return sorted(blows, key=lambda blow: blow.since)


def counted(blows: Iterable[Thrown]) -> dict[str, int]:
    """Return how many of them met somebody, by name; the most frequent first."""
    return dict(Counter(blow.fault for blow in blows if blow.met).most_common())
