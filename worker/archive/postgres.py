"""The archive in PostgreSQL, for every process that reaches the server.

Numbers of a sequence are given out before the commit, so those of two transactions may become
visible in another order: a reader that has seen the later one would never look for the earlier one.
So whoever adds holds a lock until its commit is visible, and places rise in the order of commits.
That costs little, as what comes at a time is one transaction.

Ids, keys and names of foreign publishers may be longer than an index takes. So it is a digest of
the id that is unique, and the beginning of the others that is in their index.
"""

from __future__ import annotations

import re
from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from worker.archive.base import NoArchive
from worker.archive.queries import Queries
from worker.errors import ArchiveUnavailable
from worker.stores.postgres import Database, Kind, alone

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from worker.archive.base import ArchiveOptions
    from worker.archive.entry import Entry
    from worker.archive.queries import Row
    from worker.stores.postgres import Line

_KIND = Kind("archive", "the tables qworker_archive_…", ArchiveUnavailable)
_VERSION = "1"
_TABLES = """
CREATE TABLE qworker_archive_events (
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, digest bytea NOT NULL UNIQUE,
    id text NOT NULL, name text NOT NULL, key text, time bigint NOT NULL, at bigint NOT NULL,
    headers text NOT NULL, properties text NOT NULL, body bytea NOT NULL
);
CREATE INDEX qworker_archive_keys ON qworker_archive_events (left(key, 200), seq)
    WHERE key IS NOT NULL;
CREATE INDEX qworker_archive_names ON qworker_archive_events (left(name, 200), seq);
CREATE INDEX qworker_archive_times ON qworker_archive_events (time, seq);
CREATE TABLE qworker_archive_documents (
    name text PRIMARY KEY, version bigint NOT NULL, text text NOT NULL
);
CREATE TABLE qworker_archive_meta (name text PRIMARY KEY, value text NOT NULL);
"""
_INSERT_VERSION = "INSERT INTO qworker_archive_meta VALUES ('version', %s)"
_LOOK_VERSION = "SELECT value FROM qworker_archive_meta WHERE name = 'version'"
_IS_THERE = "SELECT to_regclass('qworker_archive_meta') IS NOT NULL"
#: Asked of the server itself, as a pooler makes up what it says of it.
_ENCODING = "SELECT current_setting('server_encoding')"
_UTF8 = "UTF8"
#: Held by whoever adds, until the commit is visible.
_ONE_WRITER = "SELECT pg_advisory_xact_lock(7163120462)"
_ADD = """INSERT INTO qworker_archive_events
    (digest, id, name, key, time, headers, properties, body, at)
SELECT digest, id, name, key, time, headers, properties, body, at FROM unnest(
    %s::bytea[], %s::text[], %s::text[], %s::text[], %s::bigint[], %s::text[], %s::text[],
    %s::bytea[], %s::bigint[]
) WITH ORDINALITY AS given (digest, id, name, key, time, headers, properties, body, at, place)
ORDER BY place
ON CONFLICT (digest) DO NOTHING"""
_PARAMETER = re.compile(r"(?<!:):(\w+)")


class PostgresArchive(Queries):
    """An archive of ``postgresql://…``. As durable as the database."""

    events, texts = "qworker_archive_events", "qworker_archive_documents"
    has_id = "digest = :id"
    has_key = "left(key, 200) = left(:key, 200) AND key = :key"
    has_name = "left(name, 200) = left({0}, 200) AND name = {0}"
    matches = "('.' || name) ~ {}"
    unindexed = "{}"

    def __init__(self, url: str, options: ArchiveOptions) -> None:
        self._url = url
        self._creates = options.creates
        self._database = Database(url, _KIND, options.timeout, self._prepare)

    @classmethod
    def open(cls, url: str, options: ArchiveOptions) -> PostgresArchive:
        """Open ``postgresql://[user[:password]@][host][:port]/database[?sslmode=…]``.

        Makes the tables ``qworker_archive_…`` where they are not there yet, in the first schema of
        the ``search_path``.
        """
        store = cls(url, options)
        with store._database.talking(opening=True):
            pass
        return store

    def add(self, entries: Sequence[Entry]) -> int:
        """Store events in their order; return how many were not there yet."""
        if not entries:
            return 0
        columns = [*map(list, zip(*(entry[:7] for entry in entries), strict=True))]
        digests, times = [_digest(e.id) for e in entries], [e.at for e in entries]
        with self._database.talking() as line, line.transaction():
            line.execute(_ONE_WRITER)
            return line.execute(_ADD, (digests, *columns, times)).rowcount

    def found_by(self, event_id: str) -> bytes:
        """Return the digest of an id."""
        return _digest(event_id)

    def ask(self, sql: str, parameters: Mapping[str, Any]) -> list[Row]:
        """Return the rows of a query."""
        with self._database.talking() as line:
            rows: list[Row] = line.execute(_translated(sql), parameters).fetchall()
        return rows

    def change(self, sql: str, parameters: Mapping[str, Any]) -> int:
        """Make a change in a transaction of its own; return how many rows there were."""
        with self._database.talking() as line:
            return int(line.execute(_translated(sql), parameters).rowcount)

    def bytes_used(self) -> int:
        """Return what the table takes with its indexes."""
        ((found,),) = self.ask("SELECT pg_total_relation_size('qworker_archive_events')", {})
        return int(found)

    def close(self) -> None:
        """Disconnect; the next call connects again."""
        self._database.close()

    def _prepare(self, line: Line) -> None:
        """Make the tables where they are not there.

        Raises ConfigurationError for a layout that is not known; and for an encoding that has no
        place for every text, as a single event would then keep all others waiting for ever. Raises
        NoArchive for who only reads.
        """
        is_there = line.execute(_IS_THERE).fetchone() == (True,)
        if not (is_there or self._creates):
            raise NoArchive(self._url, "there is no archive in this database")
        encoding = line.execute(_ENCODING).fetchone()
        if encoding != (_UTF8,):
            found = "unknown" if encoding is None else encoding[0]
            raise self._database.mistake(
                f"its encoding is {found}, which cannot hold what publishers may send; make a"
                " database for the archive with CREATE DATABASE … ENCODING 'UTF8' TEMPLATE"
                " template0, and name that one"
            )
        if not is_there:
            with alone(line):
                if line.execute(_IS_THERE).fetchone() == (False,):
                    line.execute(_TABLES)
                    line.execute(_INSERT_VERSION, (_VERSION,))
        row = line.execute(_LOOK_VERSION).fetchone()
        if row != (_VERSION,):
            found = "unknown" if row is None else f"version {row[0]}"
            raise self._database.mistake(
                f"its layout is {found}, this program knows version {_VERSION}; use the program"
                " that made it, or another database or schema"
            )


@lru_cache(maxsize=256)
def _translated(sql: str) -> str:
    return _PARAMETER.sub(r"%(\1)s", sql.replace("%", "%%"))


def _digest(event_id: str) -> bytes:
    return blake2b(event_id.encode(), digest_size=16).digest()
