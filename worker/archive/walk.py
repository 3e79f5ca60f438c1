"""Through a selection from its first event to its last, in pages that fit into memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from worker.archive.base import Archive, Page, Tally
    from worker.archive.selection import Selection

#: Events of a page.
_MOST = 500


def pages(archive: Archive, selection: Selection, after: int, upto: int) -> Iterator[Page]:
    """Yield what is meant behind ``after``, up to ``upto``; a page may be empty."""
    while after < upto:
        page = archive.read(selection, after, upto, _MOST)
        after = page.upto
        yield page


def count_all(
    archive: Archive,
    selection: Selection,
    after: int,
    upto: int,
    tell: Callable[[int, int], None] = lambda _at, _upto: None,
) -> Mapping[str, Tally]:
    """Count by name what is meant behind ``after``, up to ``upto``; ``tell`` how far it is."""
    found: dict[str, Tally] = {}
    while after < upto:
        counted, after = archive.tally(selection, after, upto)
        for name, tally in counted.items():
            found[name] = found[name] + tally if name in found else tally
        tell(after, upto)
    return dict(sorted(found.items()))
