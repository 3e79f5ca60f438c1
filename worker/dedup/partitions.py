"""The partitions of the table of done ids: by when an id may be forgotten, dropped as a whole.

An id goes where its own ``expires`` belongs. So what a partition holds may be forgotten once its
upper end has passed, whoever asks and whatever retention that one has.

The bounds are settled by no layout: where ids of a retention will need room, whoever sees it first
makes some, of a width that fits its retention, between what is there. So users with different
retentions share the table, and it has no more partitions for a month than for an hour.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, NamedTuple

from psycopg.errors import DuplicateTable, InvalidObjectDefinition
from psycopg.sql import SQL, Identifier

from worker.stores.postgres import send_alone

if TYPE_CHECKING:
    from collections.abc import Collection

    from worker.stores.postgres import Line

#: A partition is as wide as the retention, so an id is looked for in two of them: each one more
#: adds a fifth to the server's work. What is dropped is twice as old as it had to be, at most. The
#: next one is made this part of that before it is needed.
_AHEAD_SHARE = 8
#: Seconds that the server's clock may go wrong by, and back, without hiding an id for ever.
_CLOCK_MARGIN = 300
_LOOK = """SELECT clock, nspname, relname, pg_get_expr(relpartbound, pg_class.oid), relreplident
    FROM (SELECT date_part('epoch', clock_timestamp()) AS clock) AS now
        LEFT JOIN pg_inherits ON inhparent = 'qworker_dedup_done'::regclass
        LEFT JOIN pg_class ON pg_class.oid = inhrelid
        LEFT JOIN pg_namespace ON pg_namespace.oid = relnamespace"""
_BOUNDS = re.compile(r"FROM \('(\d+)'\) TO \('(\d+)'\)")
#: There is no key, so a publication of all tables would have each deletion refused without this.
_IDENTIFY = SQL("ALTER TABLE {name} REPLICA IDENTITY FULL")
#: Attaching what was made before takes a lock that batches do not meet, unlike PARTITION OF.
_MAKE = SQL(
    """CREATE TABLE {name} (LIKE qworker_dedup_done INCLUDING ALL); {identify};
    ALTER TABLE qworker_dedup_done ATTACH PARTITION {name} FOR VALUES FROM ({lower}) TO ({upper})"""
)
_DROP = SQL("DROP TABLE IF EXISTS {name}")
#: What can wait is done later where it does not get its locks so soon, in milliseconds: dropping
#: needs the whole table for a moment, and batches queue behind it.
_PATIENCE = 100


class Span(NamedTuple):
    """Seconds since 1970: from the lower one to before the upper one."""

    lower: int
    upper: int


class Partition(NamedTuple):
    """One of them, as it was found."""

    name: Identifier
    span: Span
    #: Deleting from it can be published.
    is_identified: bool


class Partitions(NamedTuple):
    """What there is at a time, the server's."""

    now: float
    found: list[Partition]

    def lacks(self, retention: float, *, ahead: bool) -> list[Span]:
        """Return what has to be made for what is done now, or until the next one is made."""
        width = math.ceil(retention)
        first = math.ceil(self.now + retention)
        last = first + max(1, width // _AHEAD_SHARE) if ahead else first
        return missing([partition.span for partition in self.found], first, last, width)

    def room(self, retention: float) -> float:
        """Return the seconds for which what is done has room."""
        first = end = math.ceil(self.now + retention)
        for span in sorted(partition.span for partition in self.found):
            if span.lower <= end:
                end = max(end, span.upper)
        return float(end - first)

    def past(self) -> list[Partition]:
        """Return those of which everything may be forgotten."""
        return [
            partition
            for partition in self.found
            for lower, upper in [partition.span]
            if upper + min(_CLOCK_MARGIN, upper - lower) <= self.now
        ]


def missing(spans: Collection[Span], first: int, last: int, width: int) -> list[Span]:
    """Return what has to be added to ``spans`` for room from ``first`` to ``last``, both included.

    What is added is ``width`` wide, at multiples of that, but for where it would overlap.
    """
    known = sorted(spans)
    added = []
    at = first
    while at <= last:
        below = max((span.upper for span in known if span.lower <= at), default=0)
        if below <= at:
            lower = max(at - at % width, below)
            above = min((span.lower for span in known if span.lower > at), default=lower + width)
            upper = min(at - at % width + width, above)
            added.append(Span(lower, upper))
            below = upper
        at = below
    return added


def look(line: Line) -> Partitions:
    """Return what there is now."""
    rows = line.execute(_LOOK).fetchall()
    found = []
    for _, schema, name, text, identity in rows:
        # It has none while somebody else drops it; and what an operator added may have others.
        bounds = _BOUNDS.search(text or "")
        if bounds is not None:
            span = Span(int(bounds[1]), int(bounds[2]))
            found.append(Partition(Identifier(schema, name), span, identity != "d"))
    return Partitions(rows[0][0], found)


def make_room(line: Line, retention: float, *, ahead: bool = False) -> Partitions:
    """Make room for what is done now, or soon (``ahead``); return what there is then.

    What is not needed yet is made only where that keeps nobody waiting for long.
    """
    there = look(line)
    while spans := there.lacks(retention, ahead=ahead):
        try:
            _make(line, spans, _PATIENCE if ahead else None)
        except (DuplicateTable, InvalidObjectDefinition):
            before, there = there, look(line)
            if there.found == before.found:
                raise
            # Another has made some at the same moment.
        else:
            there = look(line)
    return there


def drop(line: Line, partition: Partition) -> None:
    """Drop what is not needed any more."""
    send_alone(line, _DROP.format(name=partition.name), patience=_PATIENCE)


def identify(line: Line, partition: Partition) -> None:
    """Let deletions be published from what an older version made."""
    send_alone(line, _IDENTIFY.format(name=partition.name), patience=_PATIENCE)


def _make(line: Line, spans: Collection[Span], patience: int | None) -> None:
    statements = []
    for span in spans:
        name = Identifier(f"qworker_dedup_done_{span.lower}_{span.upper}")
        bounds = {"lower": span.lower, "upper": span.upper}
        statements.append(_MAKE.format(name=name, identify=_IDENTIFY.format(name=name), **bounds))
    send_alone(line, SQL("; ").join(statements), patience=patience)
