"""The archive's writer: many at a time, however long the database is away."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from worker.archive.entry import Entry
from worker.archive.writer import Mark, Writer
from worker.errors import ArchiveUnavailable


class Remembering:
    """An archive in memory that is away as often as told."""

    def __init__(self, away: int = 0) -> None:
        self.away = away
        self.batches: list[list[str]] = []
        self.marks: list[str] = []
        self.trimmed: list[int] = []
        self.closed = False

    def add(self, entries: Sequence[Entry]) -> int:
        if self.away:
            self.away -= 1
            raise ArchiveUnavailable("away")
        self.batches.append([entry.id for entry in entries])
        return len(entries)

    def write(self, name: str, version: int, text: str) -> bool:
        assert (version, text) == (0, "told")
        self.marks.append(name)
        return True

    def trim(self, before: int, limit: int) -> int:
        self.trimmed.append(before)
        return limit if len(self.trimmed) < 3 else 0

    def close(self) -> None:
        self.closed = True


def entry(number: int, body: bytes = b"{}") -> Entry:
    return Entry(f"id-{number}", "name", None, 0, "{}", "{}", body)


def store(writer: Writer, *what: Any) -> None:
    async def all_of_it() -> None:
        await asyncio.gather(*map(writer.store, what))

    asyncio.run(all_of_it())


def test_what_waits_at_a_time_is_one_transaction() -> None:
    archive: Any = Remembering()
    writer = Writer(archive)

    store(writer, *map(entry, range(300)))
    writer.close()

    stored = [each for batch in archive.batches for each in batch]
    assert stored == [f"id-{n}" for n in range(300)]
    assert len(archive.batches) < 10
    assert archive.closed


def test_a_transaction_is_not_larger_than_memory_likes() -> None:
    archive: Any = Remembering()
    writer = Writer(archive)

    store(writer, *(entry(n, bytes(3 * 1024 * 1024)) for n in range(6)))
    writer.close()

    assert max(map(len, archive.batches)) == 2


def test_while_the_database_is_away_all_waits_and_nothing_fails() -> None:
    archive: Any = Remembering(away=2)
    writer = Writer(archive)

    store(writer, entry(1), entry(2))
    writer.close()

    assert sorted(each for batch in archive.batches for each in batch) == ["id-1", "id-2"]


def test_the_traceback_of_an_error_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    archive: Any = Remembering()
    errors = [OverflowError("one"), OverflowError("one"), OverflowError("two"), None, None]
    stored = archive.add

    def add(entries: Sequence[Entry]) -> int:
        if (error := errors.pop(0)) is not None:
            raise error
        return int(stored(entries))

    archive.add = add
    writer = Writer(archive)

    store(writer, entry(1))
    errors.insert(0, OverflowError("two"))
    store(writer, entry(2))
    writer.close()

    told = [each for each in caplog.records if "the archive failed" in each.getMessage()]
    assert [bool(each.exc_info) for each in told] == [True, False, True, True]
    words = [each.getMessage().partition("OverflowError")[2] for each in told]
    assert words == ["('one')", "('one')", "('two')", "('two')"]
    assert archive.batches == [["id-1"], ["id-2"]]


def test_a_mark_is_written_after_what_came_before_it() -> None:
    archive: Any = Remembering(away=1)
    writer = Writer(archive)

    store(writer, entry(1), Mark("barrier/1", "told"))
    writer.close()

    assert (archive.batches[0], archive.marks) == (["id-1"], ["barrier/1"])


def test_it_ends_although_the_database_is_away() -> None:
    archive: Any = Remembering(away=10**9)
    writer = Writer(archive)

    async def give_up() -> None:
        waiting = asyncio.ensure_future(writer.store(entry(1)))
        await asyncio.sleep(0)
        await asyncio.to_thread(writer.close)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(give_up())

    assert archive.closed


def test_what_is_too_old_is_removed_until_there_is_no_more() -> None:
    archive: Any = Remembering()
    writer = Writer(archive, retention=100.0, clock=lambda: 1000.0)

    store(writer, entry(1))
    while len(archive.trimmed) < 3:
        store(writer, entry(2))
    writer.close()

    assert archive.trimmed == [900_000_000] * 3


def test_what_goes_wrong_in_removing_keeps_nothing_from_being_stored() -> None:
    archive: Any = Remembering()
    tried: list[int] = []

    def trim(before: int, limit: int) -> int:
        tried.append(limit)
        raise OverflowError("int too large")

    archive.trim = trim
    writer = Writer(archive, retention=100.0)

    store(writer, entry(1))
    writer._trim_at = 0.0
    store(writer, entry(2))
    store(writer, entry(3))
    writer.close()

    assert tried
    assert [each for batch in archive.batches for each in batch] == ["id-1", "id-2", "id-3"]
