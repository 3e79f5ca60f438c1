"""The archive on PostgreSQL asks nothing that looks at all of it, however much there is."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any

import psycopg
import pytest

from worker.archive import queries
from worker.archive.base import ArchiveOptions
from worker.archive.postgres import PostgresArchive
from worker.archive.selection import Selection

NUMBER = 60_000
FILL = """INSERT INTO qworker_archive_events
    (digest, id, name, key, time, headers, properties, body, at)
SELECT sha256(n::text::bytea), n::text, 'user.k' || n % 3, 'u' || n % 3, n, '{}', '{}', '1', n
FROM generate_series(1, 60000) AS n"""


class Watched(PostgresArchive):
    """Notes how many rows each of its queries looks at."""

    def __init__(self, url: str) -> None:
        super().__init__(url, ArchiveOptions())
        self.looked: list[int] = []

    def ask(self, sql: str, parameters: Mapping[str, Any]) -> list[Any]:
        explained = f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}"
        ((told,),) = super().ask(explained, parameters)
        self.looked.append(max(rows(json.loads(told) if isinstance(told, str) else told)))
        return super().ask(sql, parameters)


def rows(plan: Any) -> Iterator[int]:
    """Yield how many rows each step of a plan has looked at."""
    if isinstance(plan, list):
        for each in plan:
            yield from rows(each)
    elif isinstance(plan, dict):
        if "Actual Rows" in plan:
            removed = sum(n for name, n in plan.items() if name.startswith("Rows Removed"))
            yield int((plan["Actual Rows"] + removed) * plan["Actual Loops"])
        for each in plan.values():
            yield from rows(each)
    yield 0


@pytest.fixture
def archive(postgres_url: str) -> Iterator[Watched]:
    with closing(Watched(postgres_url)) as archive:
        archive.size()  # makes the tables
        with psycopg.connect(postgres_url, autocommit=True) as line:
            line.execute(FILL)
            line.execute("VACUUM ANALYZE qworker_archive_events")
        archive.looked.clear()
        yield archive


@pytest.mark.parametrize("since", [1_000, NUMBER - 1_000])
def test_a_time_is_found_without_a_look_at_all_that_is_older(
    archive: Watched, monkeypatch: pytest.MonkeyPatch, since: int
) -> None:
    monkeypatch.setattr(queries, "_TIMED", 5_000)

    span = archive.span(Selection(since=since))

    assert span == (since - 1, NUMBER)
    assert max(archive.looked) <= 5_000
