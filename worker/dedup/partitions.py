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
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from psycopg import errors
from psycopg.sql import SQL, Identifier

from worker.stores.postgres import alone

if TYPE_CHECKING:
    from collections.abc import Collection

    from worker.stores.postgres import Line

#: A partition is as wide as the retention, so an id is looked for in two of them: each one more
#: adds a fifth to the server's work. What is dropped is twice as old as it had to be, at most. The
#: next one is made this part of that before it is needed.
_AHEAD_SHARE = 8
#: Seconds that the server's clock may go wrong by, and back, without hiding an id for ever.
_CLOCK_MARGIN = 300
_LOOK = """SELECT nspname, relname, pg_get_expr(relpartbound, pg_class.oid)
    FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
        JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE inhparent = 'qworker_dedup_done'::regclass"""
_NOW = "SELECT date_part('epoch', clock_timestamp())"
_BOUNDS = re.compile(r"FROM \('(\d+)'\) TO \('(\d+)'\)")
#: Attaching what was made before takes a lock that batches do not meet, unlike PARTITION OF.
_MAKE = SQL(
    """CREATE TABLE {name} (LIKE qworker_dedup_done INCLUDING ALL);
    ALTER TABLE qworker_dedup_done ATTACH PARTITION {name} FOR VALUES FROM ({lower}) TO ({upper})"""
)
_DROP = SQL("DROP TABLE IF EXISTS {name}")
#: What can wait is done later where it does not get its locks so soon, in milliseconds: dropping
#: needs the whole table for a moment, and batches queue behind it.
_PATIENCE = 100
#: It is in use, or another user's. (``warnings`` of the store tells of the latter.)
_NOT_NOW = (errors.LockNotAvailable, errors.QueryCanceled, errors.InsufficientPrivilege)


class Span(NamedTuple):
    """Seconds since 1970: from the lower one to before the upper one."""

    lower: int
    upper: int


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


def tend(line: Line, retention: float) -> float:
    """Make room for what is done from now on, and drop what may be forgotten.

    Returns the seconds that there is room for.
    """
    ((now,),) = line.execute(_NOW)
    first, width = math.ceil(now + retention), math.ceil(retention)
    last = first + max(1, width // _AHEAD_SHARE)
    found = _look(line)
    if missing(found.values(), first, last, width):
        # Ahead of time it is no trouble where an operator, or a vacuum, has the table.
        is_early = not missing(found.values(), first, first, width)
        with (
            suppress(*(_NOT_NOW if is_early else ())),
            alone(line, patience=_PATIENCE if is_early else None),
        ):
            found = _look(line)
            for span in missing(found.values(), first, last, width):
                name = f"qworker_dedup_done_{span.lower}_{span.upper}"
                bounds = {"lower": span.lower, "upper": span.upper}
                line.execute(_MAKE.format(name=Identifier(name), **bounds))
        found = _look(line)
    for place, span in found.items():
        if span.upper + min(_CLOCK_MARGIN, span.upper - span.lower) <= now:
            with suppress(*_NOT_NOW), alone(line, patience=_PATIENCE):
                line.execute(_DROP.format(name=Identifier(*place)))
    end = first
    for span in sorted(found.values()):
        if span.lower <= end:
            end = max(end, span.upper)
    return float(end - first)


def _look(line: Line) -> dict[tuple[str, str], Span]:
    """Return the partitions: schema and name to bounds."""
    found = {}
    for schema, name, text in line.execute(_LOOK):
        # It has none while somebody else drops it; and what an operator added may have others.
        bounds = _BOUNDS.search(text or "")
        if bounds is not None:
            found[schema, name] = Span(int(bounds[1]), int(bounds[2]))
    return found
