"""Revisions in PostgreSQL: the last one of each place, in a table beside those of the records.

They are marked and looked at behind the records, in the message that applies these: one transaction
(``postgres.py``). Marks lock their rows in the order of the places, when all records are locked; so
no batch waits here for another that waits for it.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from psycopg import errors

from worker.dedup.packed import pack_looks, pack_marks
from worker.stores.postgres import alone

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker.dedup.base import Batch
    from worker.stores.postgres import Line

#: A database that was laid out before there were revisions gets it later.
_CREATE = """CREATE TABLE qworker_dedup_revisions (
    revision bigint NOT NULL, expires float8 NOT NULL, place bytea PRIMARY KEY)"""
#: NULL where it is not there; false where this user may not use it.
_MAY_USE = " AND ".join(
    f"has_table_privilege(to_regclass('qworker_dedup_revisions'), '{right}')"
    for right in ("SELECT", "INSERT", "UPDATE")
)
_LOOK_AROUND = f"SELECT to_regclass('qworker_dedup_revisions') IS NOT NULL, {_MAY_USE}"
#: What may keep a user from making it, and does not pass: a right, or a trigger on such commands.
_REFUSED = (errors.InsufficientPrivilege, errors.RaiseException)
_MARK = """PREPARE qworker_dedup_mark (bytea, float8) AS
WITH clock AS MATERIALIZED (
    SELECT date_part('epoch', clock_timestamp()) AS now
)
INSERT INTO qworker_dedup_revisions AS known (place, revision, expires)
SELECT substring($1 FROM at FOR 16),
    ('x' || encode(substring($1 FROM at + 16 FOR 8), 'hex'))::bit(64)::bigint, now + $2
FROM generate_series(1, length($1), 33) AS at CROSS JOIN clock
ORDER BY 1
ON CONFLICT (place) DO UPDATE SET revision = excluded.revision, expires = excluded.expires
    WHERE known.revision <= excluded.revision
        OR known.expires <= date_part('epoch', clock_timestamp())
"""
_LOOK = """PREPARE qworker_dedup_look (bytea) AS
SELECT encode(string_agg(int8send(coalesce(revision, -1)), '' ORDER BY at), 'hex')
FROM generate_series(1, length($1), 33) AS at
    LEFT JOIN qworker_dedup_revisions AS known ON known.place = substring($1 FROM at FOR 16)
        AND known.expires > (SELECT date_part('epoch', clock_timestamp()))
"""
#: What a session has to know.
PREPARE = f"{_MARK}; {_LOOK}"
_REVISION = struct.Struct(">q")


def make(line: Line) -> bool:
    """Make the table where it is not there; tell whether it can be used."""
    there, may_use = _look_around(line)
    if not there:
        try:
            with alone(line):
                if not _look_around(line)[0]:
                    line.execute(_CREATE)
        except _REFUSED:
            return False
        _, may_use = _look_around(line)
    return bool(may_use)


def _look_around(line: Line) -> tuple[bool, bool | None]:
    ((there, may_use),) = line.execute(_LOOK_AROUND)
    return there, may_use


def statements(batch: Batch, retention: float) -> Iterator[str]:
    """Yield what marks the revisions of ``batch``, and then looks at some: one value, of those."""
    if batch.marks:
        marks = b"".join(pack_marks(batch)).hex()
        yield f"EXECUTE qworker_dedup_mark('\\x{marks}', {retention:.6f})"
    if batch.looks:
        yield f"EXECUTE qworker_dedup_look('\\x{b''.join(pack_looks(batch)).hex()}')"


def read(reply: str) -> list[int]:
    """Return the revisions that were looked at; a negative one stands for none."""
    return [revision for (revision,) in _REVISION.iter_unpack(bytes.fromhex(reply))]
