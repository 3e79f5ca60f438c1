"""The thread that sends what was committed: what it keeps, and how often it looks."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from worker.contrib.outbox import (
    EVERYTHING,
    Bounds,
    Entry,
    OutboxUnavailable,
    Sender,
    columns_of,
    entry_of,
)

from outboxes import Loose, sent
from waiting import until
from worker import App
from worker.testing import TestWorker


class Rows:
    """Those of a database that counts the looks at it."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._entries: list[Entry] = []
        self.looks = 0
        #: The first open transaction.
        self.open = 100
        self.is_away = False
        self.may_answer = threading.Event()
        self.may_answer.set()

    def add(self, event: Loose, transaction: int) -> dict[str, Any]:
        """Commit a row; return its columns."""
        row: dict[str, Any] = columns_of("desk", self._app.encode(event))
        numbers = {"sequence": len(self._entries) + 1, "transaction_id": transaction}
        self._entries.append(entry_of({**row, **numbers}))
        return row

    def check(self) -> None: ...

    def horizon(self) -> int:
        self.looks += 1
        assert self.may_answer.wait(30)
        if self.is_away:
            raise OutboxUnavailable("away")
        return self.open

    def newest(self) -> int:
        return len(self._entries)

    def read(self, limit: int, within: Bounds = EVERYTHING) -> list[Entry]:
        assert within == Bounds(lanes=within.lanes)
        return [entry for entry in self._entries if entry.lane in (within.lanes or ())][:limit]

    def remove(self, sequences: Sequence[int]) -> None:
        self._entries = [e for e in self._entries if e.sequence not in sequences]


@pytest.fixture
def app() -> App:
    return App("desk")


@pytest.fixture
def worker(app: App) -> Iterator[TestWorker]:
    with TestWorker(app) as worker:
        yield worker


@pytest.fixture
def rows(app: App) -> Rows:
    return Rows(app)


def test_in_an_outage_all_that_was_committed_is_left_to_the_relay(
    app: App, worker: TestWorker, rows: Rows
) -> None:
    sender = Sender(app, rows)
    rows.is_away = True
    rows.may_answer.clear()
    sender.wake([rows.add(Loose(number=0), 1)])
    until(lambda: rows.looks == 1, message="it is at it")
    for number in range(1, 1001):
        sender.wake([rows.add(Loose(number=number), 1)])
    rows.may_answer.set()
    assert sender.flush(30)
    assert rows.looks == 2, "what came meanwhile is tried once"

    rows.is_away = False
    sender.wake([rows.add(Loose(number=1001), 1)])
    assert sender.flush(30)
    assert rows.looks == 4, "once to send it, and once for what may have come behind it"
    assert sent(worker) == [1001]


def test_what_is_held_is_looked_at_less_and_less_often(
    app: App, worker: TestWorker, rows: Rows
) -> None:
    """All processes ask the database for it, and each time that goes through all of its locks."""
    sender = Sender(app, rows)
    sender.wake([rows.add(Loose(number=0), 100)])
    assert sender.flush(30)
    assert 5 < rows.looks < 15
    assert sent(worker) == []


def test_what_is_committed_meanwhile_waits_for_no_such_pause(
    app: App, worker: TestWorker, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_PAUSE", "_LONGEST_PAUSE", "_PATIENCE"):
        monkeypatch.setattr(f"worker.contrib.outbox.sender.{name}", 3600.0)
    sender = Sender(app, rows)
    sender.wake([rows.add(Loose(number=0), 100)])
    until(lambda: rows.looks == 1, message="it waits")
    sender.wake([rows.add(Loose(number=1), 1)])
    until(lambda: sent(worker) == [1], message="the other one is sent")
