"""What both databases are asked alike, once for both: reading, counting, documents.

A read that no index answers in order looks at so many places at a time and no more, so each
statement is short, whatever is meant. The names of parameters are written as ``:name``.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, TypeAlias

from worker.archive.base import PAGE_BYTES, Archive, Document, Page, Size, Tally
from worker.archive.entry import Entry
from worker.archive.removals import note_removal
from worker.archive.selection import Selection, expression_of
from worker.routing import is_pattern

if TYPE_CHECKING:
    from collections.abc import Mapping

Row: TypeAlias = tuple[Any, ...]

#: Places that one statement looks at: for events, to count them by name, to find those of a time,
#: and to count them.
_WINDOW, _COUNTED, _TIMED, _SIZED = 10_000, 50_000, 50_000, 1_000_000
#: Places that are looked at to find what is too old behind events of a clock that was ahead.
_PASSED = 1_000_000
_LONG_AGO = -(2**63)


class Queries(Archive, ABC):
    """An archive in SQL. Derive from it for a database."""

    #: The table of events, and that of documents.
    events: str
    texts: str
    columns = "id, name, key, time, headers, properties, body, seq, at"
    #: Conditions whose form an index asks for; and a column that no index shall be used for.
    has_key: str
    has_name: str
    has_id: str
    matches: str
    unindexed: str

    @abstractmethod
    def ask(self, sql: str, parameters: Mapping[str, Any]) -> list[Row]:
        """Return the rows of a query."""

    @abstractmethod
    def change(self, sql: str, parameters: Mapping[str, Any]) -> int:
        """Make a change in a transaction of its own; return how many rows there were."""

    def found_by(self, event_id: str) -> str | bytes:
        """Return what ``has_id`` compares with."""
        return event_id

    @abstractmethod
    def bytes_used(self) -> int:
        """Return what the events take on disk."""

    def span(self, selection: Selection) -> tuple[int, int]:
        """Return a place before all that is meant, and one that nothing of that is behind."""
        ((first, last),) = self.ask(f"SELECT min(seq), max(seq) FROM {self.events}", {})
        if first is None:
            return 0, 0
        if selection.since is None and selection.until is None:
            return first - 1, last
        return self._span_of_time(selection.since, selection.until)

    def _span_of_time(self, since: int | None, until: int | None) -> tuple[int, int]:
        """Return the places around what is of that time.

        Events need not be in the order of their times: all of that time are looked at, in the index
        alone, so many at a time.
        """
        before = "" if until is None else " AND time < :until"
        some = (
            f"SELECT time, seq FROM {self.events} WHERE (time, seq) > (:time, :seq){before}"
            " ORDER BY time, seq LIMIT :most"
        )
        # The last of them, and what is said of all: no minimum that a planner may look for in seq.
        told = (
            f"SELECT min(seq) OVER (), max(seq) OVER (), time, seq FROM ({some}) AS found"
            " ORDER BY time DESC, seq DESC LIMIT 1"
        )
        given = {} if until is None else {"until": until}
        time, seq = _LONG_AGO if since is None else since, 0
        firsts, lasts = [], [0]
        while rows := self.ask(told, {**given, "time": time, "seq": seq, "most": _TIMED}):
            ((first, last, time, seq),) = rows
            firsts.append(first)
            lasts.append(last)
        return min(firsts, default=1) - 1, max(lasts)

    def read(self, selection: Selection, after: int, upto: int, limit: int) -> Page:
        """Return up to ``limit`` events that are meant, behind ``after``, up to ``upto``."""
        end = upto if selection.is_narrow else min(upto, after + _WINDOW)
        where, parameters = self._where(selection, after, end)
        # Lengths first: they are known without a look at the bodies.
        chosen = (
            f"SELECT seq, length(body) AS bytes FROM {self.events}"
            f" WHERE {where} ORDER BY seq LIMIT :most"
        )
        before = f"SELECT seq, sum(bytes) OVER (ORDER BY seq) - bytes AS before FROM ({chosen})"
        page = f"SELECT seq FROM ({before} AS chosen) AS sums WHERE before < :bytes"
        rows = self.ask(
            f"SELECT {self.columns} FROM {self.events} WHERE seq IN ({page}) ORDER BY seq",
            {**parameters, "most": limit, "bytes": PAGE_BYTES},
        )
        entries = [self._entry(row) for row in rows]
        full = len(entries) == limit or sum(len(entry.body) for entry in entries) >= PAGE_BYTES
        return Page(entries, entries[-1].seq if full else end)

    def tally(self, selection: Selection, after: int, upto: int) -> tuple[Mapping[str, Tally], int]:
        """Count by name what is meant behind ``after``; and return how far it has counted."""
        end = min(upto, after + _COUNTED)
        where, parameters = self._where(selection, after, end)
        rows = self.ask(
            f"SELECT name, count(*), min(time), max(time) FROM {self.events}"
            f" WHERE {where} GROUP BY name",
            parameters,
        )
        return {name: Tally(*numbers) for name, *numbers in rows}, end

    def find(self, event_id: str) -> Entry | None:
        """Return the event of this id."""
        told = f"SELECT {self.columns} FROM {self.events} WHERE {self.has_id}"
        rows = self.ask(told, {"id": self.found_by(event_id)})
        return self._entry(rows[0]) if rows else None

    def size(self) -> Size:
        """Return how large it is."""
        events, (after, upto) = 0, self.span(Selection())
        ends = []
        for seq in (after + 1, upto):
            rows = self.ask(f"SELECT at FROM {self.events} WHERE seq = :seq", {"seq": seq})
            ends.append(rows[0][0] if rows else None)
        counted = f"SELECT count(*) FROM {self.events} WHERE seq > :after AND seq <= :upto"
        while after < upto:
            end = min(upto, after + _SIZED)
            events += self.ask(counted, {"after": after, "upto": end})[0][0]
            after = end
        return Size(events, self.bytes_used(), *ends)

    def trim(self, before: int, limit: int) -> int:
        """Remove some of what was archived before; return how many.

        What comes later was archived later: behind the first event that is younger there is nothing
        to remove. But one whose time is not yet there is of a clock that was ahead, and tells
        nothing of those behind it.
        """
        removed = passed = place = 0
        most = limit
        given = {"before": before, "now": time.time_ns() // 1000}
        some = f"SELECT seq, at FROM {self.events} WHERE seq > :after ORDER BY seq LIMIT :most"
        told = (
            "SELECT max(seq), max(CASE WHEN at < :before THEN seq END),"
            " max(CASE WHEN at >= :before AND at <= :now THEN seq END)"
            f" FROM ({some}) AS oldest"
        )
        while removed < limit and passed < _PASSED:
            ((last, old, younger),) = self.ask(told, {**given, "after": place, "most": most})
            if old is None:
                passed, most = passed + most, min(4 * most, _TIMED)
            elif most > limit:
                most = max(limit, most // 4)  # no more than that are removed at a time
                continue
            else:
                removed += self._remove(before, place, old)
            if last is None or younger is not None:
                break
            place = last
        return removed

    def _remove(self, before: int, after: int, upto: int) -> int:
        """Remove what was archived before, of two places; return how many."""
        note_removal(self, upto)
        return self.change(
            f"DELETE FROM {self.events} WHERE at < :before AND seq > :after AND seq <= :upto",
            {"before": before, "after": after, "upto": upto},
        )

    def documents(self, prefix: str) -> Mapping[str, Document]:
        """Return the documents whose names begin so."""
        rows = self.ask(
            f"SELECT name, version, text FROM {self.texts}"
            " WHERE substr(name, 1, :length) = :prefix ORDER BY name",
            {"prefix": prefix, "length": len(prefix)},
        )
        return {name: Document(version, text) for name, version, text in rows}

    def write(self, name: str, version: int, text: str) -> bool:
        """Change a document if its version is still this one; tell whether it did."""
        given = {"name": name, "version": version, "text": text}
        if not version:
            insert = f"INSERT INTO {self.texts} (name, version, text) VALUES (:name, 1, :text)"
            return self.change(f"{insert} ON CONFLICT (name) DO NOTHING", given) > 0
        where = "WHERE name = :name AND version = :version"
        if not text:
            return self.change(f"DELETE FROM {self.texts} {where}", given) > 0
        changed = "text = :text, version = version + 1"
        return self.change(f"UPDATE {self.texts} SET {changed} {where}", given) > 0

    def _where(self, selection: Selection, after: int, upto: int) -> tuple[str, dict[str, Any]]:
        """Return the condition for what is meant between two places, and its parameters."""
        parameters: dict[str, Any] = {"after": after, "upto": upto}
        conditions = ["seq > :after", "seq <= :upto"]
        if selection.key is not None:
            conditions.append(self.has_key)
            parameters["key"] = selection.key
        for name, bound, sign in (
            ("since", selection.since, ">="),
            ("until", selection.until, "<"),
        ):
            if bound is not None:
                conditions.append(f"{self.unindexed.format('time')} {sign} :{name}")
                parameters[name] = bound
        for group, names in (("name", selection.names), ("observed", selection.observed)):
            if names:
                asked = {f"{group}{number}": name for number, name in enumerate(names)}
                is_narrow = selection.one_name is not None and names is selection.names
                either = [self._takes(name, f":{p}", narrow=is_narrow) for p, name in asked.items()]
                conditions.append(f"({' OR '.join(either)})")
                for parameter, name in asked.items():
                    parameters[parameter] = expression_of(name) if is_pattern(name) else name
        return " AND ".join(conditions), parameters

    def _takes(self, name: str, parameter: str, *, narrow: bool) -> str:
        """Return the condition for a name or a pattern."""
        if is_pattern(name):
            return self.matches.format(parameter)
        if narrow:
            return self.has_name.format(parameter)
        return f"{self.unindexed.format('name')} = {parameter}"

    def _entry(self, row: Row) -> Entry:
        return Entry(*row)
