"""What was removed from an archive: noted before it is, so that no replay misses it unawares.

Removals come from the oldest event on, so each is behind the last one, and one document has the
highest place of all. But what a clock that was ahead has archived stays until that time has come;
and who removes may die before it does what it has noted. So another document has what is removed at
or below the highest place: each with the version that this document got by it, but for those that a
later and higher one covers. Whoever remembers a version of it knows the highest place since.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

from worker.archive.base import Document

if TYPE_CHECKING:
    from collections.abc import Sequence

    from worker.archive.base import Archive

#: The documents; the name of one begins as that of the other, so both are asked for at once.
_HIGHEST, _BELOW = "removed", "removed-below"
_NONE = Document(0, "")
#: Removals that are told apart; what is longer ago counts as one.
_MOST = 100


class Below(NamedTuple):
    """Something was removed below the highest place, as the ``number``-th of these."""

    number: int
    place: int


class Removals(NamedTuple):
    """What is noted as removed."""

    #: A place behind which nothing was removed yet.
    upto: int
    #: How often something was removed at or below the highest place; and what of that counts:
    #: numbers rise, places fall.
    number: int
    below: Sequence[Below]

    def since(self, upto: int, number: int, most: int) -> int:
        """Return up to which place, or ``most``, something was removed since it was so; 0: none."""
        places = [each.place for each in self.below if each.number > number]
        if min(self.upto, most) > upto:
            places.append(self.upto)
        return min(most, max(places, default=0))


def removals_of(archive: Archive) -> Removals:
    """Return what is noted. Raises as the archive does."""
    found = archive.documents(_HIGHEST)
    highest, below = found.get(_HIGHEST, _NONE), found.get(_BELOW, _NONE)
    return Removals(int(highest.text or 0), below.version, _load(below))


def note_removal(archive: Archive, place: int) -> None:
    """Have it known that events are about to be removed, up to this place."""
    noted = False
    while not noted:
        found = archive.documents(_HIGHEST)
        highest, below = found.get(_HIGHEST, _NONE), found.get(_BELOW, _NONE)
        if place > int(highest.text or 0):
            noted = archive.write(_HIGHEST, highest.version, str(place))
        else:
            told = with_one_more(_load(below), Below(below.version + 1, place))
            noted = archive.write(_BELOW, below.version, json.dumps(told))


def _load(below: Document) -> list[Below]:
    return [Below(*each) for each in json.loads(below.text or "[]")]


def with_one_more(below: Sequence[Below], removal: Below) -> list[Below]:
    """Return what counts of all. Nobody need know of one that a later and higher one covers."""
    left = [*(each for each in below if each.place > removal.place), removal]
    if len(left) > _MOST:
        left[:2] = [Below(left[1].number, left[0].place)]
    return left
