"""The protocol of an archive: events in the order in which they came, and a few documents.

Promises that every store keeps, and that one suite of tests checks on each:

* What ``add`` was given is stored, all of it or nothing, and as durable as the database, when it
  returns. An id that is there already is left as it is: adding twice is harmless.
* Places (``seq``) rise in the order of commits, whoever adds. So a reader who has seen the place
  ``n`` has seen, or will never see, whatever has a lower one; and of two events of which the second
  was added after the first was stored, the first has the lower place.
* A read takes bounded time and memory, however large the archive and its events, and however rare
  what is meant: it may return fewer events than asked for, or none, and then says how far it has
  looked. Only of one key, or one name, all may be looked at, where something else is asked of them
  too. To find where a time begins takes as long as there are events of that time, and no single
  statement takes long.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from worker.config import mask_url
from worker.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from worker.archive.entry import Entry
    from worker.archive.selection import Selection


@dataclass(frozen=True, slots=True)
class ArchiveOptions:
    """What an archive is opened with."""

    #: Seconds that it may take to answer before it counts as away: a page of events, or a count of
    #: some thousands, is more than an id.
    timeout: float = 10.0
    #: Make what is not there: the file, the tables. Who only reads does not: NoArchive is raised.
    creates: bool = True


class NoArchive(UsageError):
    """Nothing was ever archived there: mostly another place is meant."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(
            f"{mask_url(url)}: {reason}, so nothing was archived there: start the archive ('qworker"
            " archive start'), or say another --archive"
        )


#: Bytes of bodies that one read returns, and the rest of the event that goes beyond.
PAGE_BYTES = 4 * 1024 * 1024


class Page(NamedTuple):
    """What a read found, in order, and up to which place nothing else is meant."""

    entries: list[Entry]
    upto: int


class Tally(NamedTuple):
    """How many events of a name, and when the first and the last of them were, in microseconds."""

    events: int
    first: int
    last: int

    def __add__(self, other: object) -> Tally:
        if not isinstance(other, Tally):
            return NotImplemented
        first, last = min(self.first, other.first), max(self.last, other.last)
        return Tally(self.events + other.events, first, last)


class Size(NamedTuple):
    """How large an archive is."""

    events: int
    #: What it takes on disk; of a file that others use too, all of it.
    bytes: int
    #: When the first and the last were archived, in microseconds; None in an empty one.
    first: int | None
    last: int | None


class Document(NamedTuple):
    """A document, and its version, which rises with each change."""

    version: int
    text: str


class Archive(Protocol):
    """An archive. One thread uses an instance at a time; open one per thread.

    Every method raises ArchiveUnavailable while the database is away: then nothing is known of what
    it did, and the same call can be made again. It reconnects by itself.
    """

    @classmethod
    def open(cls, url: str, options: ArchiveOptions) -> Archive:
        """Connect, and make the tables where they are not there.

        Raises ConfigurationError (bad URL) or ArchiveUnavailable (not there); with
        ``options.creates`` false NoArchive, where there is none, and then changes nothing.
        """
        ...

    def add(self, entries: Sequence[Entry]) -> int:
        """Store events in their order; return how many were not there yet."""
        ...

    def span(self, selection: Selection) -> tuple[int, int]:
        """Return a place before all that is meant, and one that nothing of that is behind.

        Both 0 where there is nothing.
        """
        ...

    def read(self, selection: Selection, after: int, upto: int, limit: int) -> Page:
        """Return up to ``limit`` events that are meant, behind ``after``, up to ``upto``."""
        ...

    def tally(self, selection: Selection, after: int, upto: int) -> tuple[Mapping[str, Tally], int]:
        """Count by name what is meant behind ``after``; and return how far it has counted."""
        ...

    def find(self, event_id: str) -> Entry | None:
        """Return the event of this id."""
        ...

    def size(self) -> Size:
        """Return how large it is."""
        ...

    def trim(self, before: int, limit: int) -> int:
        """Remove some of what was archived before, from the oldest on; return how many.

        Fewer than ``limit`` where nothing more is found of it. Before that it notes up to which
        place (:mod:`worker.archive.removals`).
        """
        ...

    def documents(self, prefix: str) -> Mapping[str, Document]:
        """Return the documents whose names begin so."""
        ...

    def write(self, name: str, version: int, text: str) -> bool:
        """Change a document if its version is still this one (0: there is none).

        Tells whether it did. An empty text removes it.
        """
        ...

    def close(self) -> None:
        """Let go of the connection."""
        ...
