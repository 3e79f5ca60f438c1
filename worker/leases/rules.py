"""The rules of ``base.py`` as plain code, for stores that read a service, change it and write it.

Stores that have a language of their own say the same in it (``redis.lua``); the conformance suite
compares both with a model.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from worker.errors import StoreCorrupt
from worker.leases.base import MEMORY_LENGTHS, STEP_SHARE, Document, Lease, View

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from worker.leases.base import LeaseOptions, Sync

    _Types = tuple[type | tuple[type, ...], ...]

_Row = TypeVar("_Row")

#: Rises when ``dump`` writes what a program of before cannot go by.
_LAYOUT = 1
_NUMBER = (int, float)


class MemberRow(NamedTuple):
    """A member, until the watched time ``until``."""

    facts: str
    until: float


class LeaseRow(NamedTuple):
    """A lease; free where ``owner`` is empty. ``until`` is of the watched time."""

    owner: str
    epoch: int
    until: float


@dataclass(slots=True)
class Book:
    """All that is kept of one service. Times are seconds."""

    #: The time that was watched since the book was begun.
    watched: float = 0.0
    #: The reading of the store's clock at the last call.
    read_at: float | None = None
    members: dict[str, MemberRow] = field(default_factory=dict)
    leases: dict[str, LeaseRow] = field(default_factory=dict)
    documents: dict[str, Document] = field(default_factory=dict)
    #: The highest epoch of all leases that there were, also of those that are forgotten.
    granted: int = 0

    @classmethod
    def load(cls, text: str | None, where: str) -> Book:
        """Read what ``dump`` wrote; None is a new book.

        Raises StoreCorrupt for anything else, with ``where`` it is.
        """
        if text is None:
            return cls()
        try:
            told = json.loads(text)
            layout = told["layout"]
            if layout == _LAYOUT:
                return cls._read(told)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise StoreCorrupt(
                f"{where}: no book of leases: {error!r:.200}; after the length of a lease, when"
                " nobody trusts one any more, remove that row: whoever runs writes it anew"
            ) from None
        raise StoreCorrupt(f"{where}: layout {layout!r:.99}, this program knows {_LAYOUT}")

    @classmethod
    def _read(cls, told: dict[str, Any]) -> Book:
        watched, read_at = told["watched"], told["read_at"]
        granted = told.get("granted", 0)  # a program of before does not write it
        _check([watched, 0.0 if read_at is None else read_at, granted], (_NUMBER, _NUMBER, int))
        leases = _rows(told["leases"], LeaseRow, (str, int, _NUMBER))
        return cls(
            watched,
            read_at,
            _rows(told["members"], MemberRow, (str, _NUMBER)),
            leases,
            _rows(told["documents"], Document, (int, str)),
            max([granted, *(row.epoch for row in leases.values())]),
        )

    def dump(self) -> str:
        """Return all of it as JSON."""
        return json.dumps(
            {
                "layout": _LAYOUT,
                "watched": self.watched,
                "read_at": self.read_at,
                "members": self.members,
                "leases": self.leases,
                "documents": self.documents,
                "granted": self.granted,
            },
            separators=(",", ":"),
        )

    def sync(self, sync: Sync, options: LeaseOptions, *, now: float, floor: int) -> View:
        """Apply ``sync``. ``now``: the store's clock; ``floor``: the least epoch to grant."""
        self._watch(now, options)
        until = self.watched + options.ttl
        for name, epoch in sync.release:
            row = self.leases.get(name)
            if row is not None and (row.owner, row.epoch) == (sync.member, epoch):
                self.leases[name] = LeaseRow("", epoch, self.watched)
        for name, epoch in sync.renew:
            row = self.leases.get(name)
            if row is None or (row.owner, row.epoch) == (sync.member, epoch):
                self.leases[name] = LeaseRow(sync.member, epoch, until)
                self.granted = max(self.granted, epoch)
        # One for all: an epoch each would run ahead of the clock, which is all that is left to go
        # by where everything is forgotten.
        new = max(floor, self.granted + 1)
        for name in sync.acquire:
            row = self.leases.get(name)
            if row is None or not self._is_owned(row):
                self.leases[name] = LeaseRow(sync.member, new, until)
                self.granted = new
            elif row.owner == sync.member:
                self.leases[name] = row._replace(until=until)
        if sync.leaving:
            self.members.pop(sync.member, None)
        else:
            self.members[sync.member] = MemberRow(sync.facts, until)
        return self.view()

    def view(self) -> View:
        """Return what is known at the last call."""
        return View(
            {id_: row.facts for id_, row in self.members.items() if row.until > self.watched},
            {
                name: Lease(row.owner, row.epoch, row.until - self.watched)
                for name, row in self.leases.items()
                if self._is_owned(row)
            },
            dict(self.documents),
            watched=self.watched,
        )

    def write(self, name: str, version: int, text: str) -> bool:
        """Change a document by compare-and-set."""
        found = self.documents.get(name)
        if (found.version if found is not None else 0) != version:
            return False
        self.documents[name] = Document(version + 1, text)
        return True

    def _is_owned(self, row: LeaseRow) -> bool:
        return bool(row.owner) and row.until > self.watched

    def _watch(self, now: float, options: LeaseOptions) -> None:
        """Count the time since the last call, and forget what is long over."""
        if self.read_at is not None:
            self.watched += min(max(now - self.read_at, 0.0), options.ttl / STEP_SHARE)
        self.read_at = now
        self.members = {i: row for i, row in self.members.items() if row.until > self.watched}
        horizon = self.watched - options.ttl * MEMORY_LENGTHS
        self.leases = {n: row for n, row in self.leases.items() if row.until > horizon}


def _rows(told: dict[str, Any], make: Callable[..., _Row], types: _Types) -> dict[str, _Row]:
    """Return rows by their names. Raises ValueError, or what comes of another shape."""
    for name, values in told.items():
        _check(values, types, f"{name}: ")
    return {name: make(*values) for name, values in told.items()}


def _check(values: Sequence[object], types: _Types, name: str = "") -> None:
    """Raise ValueError where these are not values of these types."""
    if len(values) != len(types) or not all(map(isinstance, values, types)):
        raise ValueError(f"{name}{values!r:.99}")
