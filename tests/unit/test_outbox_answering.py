"""A database that does not answer: who asks goes on, and leaves the lease to others."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from worker.contrib.outbox import EVERYTHING, Bounds, Entry, OutboxUnavailable
from worker.contrib.outbox.answering import Answering
from worker.contrib.outbox.holding import Holding
from worker.contrib.outbox.loop import Loop
from worker.contrib.outbox.relay import Relay

from waiting import until
from worker import App, ConfigurationError

_PATIENCE = 0.2


class Rows:
    """Those of a database that may hang, and notes who asked it."""

    def __init__(self) -> None:
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.is_away = False
        self.asked: list[str] = []

    def check(self) -> None:
        raise ConfigurationError("no table")

    def horizon(self) -> int | None:
        return None

    def newest(self) -> int:
        self.asked.append(str(threading.get_ident()))
        assert self.may_answer.wait(30)
        if self.is_away:
            raise OutboxUnavailable("away")
        return 7

    def read(self, limit: int, within: Bounds = EVERYTHING) -> list[Entry]:
        return []

    def remove(self, sequences: Sequence[int]) -> None: ...


@pytest.fixture
def rows() -> Iterator[Rows]:
    rows = Rows()
    yield rows
    rows.may_answer.set()


def test_what_is_answered_in_time_is_told_as_it_is(rows: Rows) -> None:
    answering = Answering(rows)
    assert answering.newest() == 7
    assert answering.read(1) == []
    with pytest.raises(ConfigurationError, match="no table"):
        answering.check()
    assert answering.silent_since is None


def test_a_question_that_hangs_is_given_up_and_the_next_is_asked_by_another_thread(
    rows: Rows,
) -> None:
    now = 5.0
    answering = Answering(rows, _PATIENCE, clock=lambda: now)
    rows.may_answer.clear()
    with pytest.raises(OutboxUnavailable, match=r"has not answered for 0\.2 seconds"):
        answering.newest()
    now = 9.0
    with pytest.raises(OutboxUnavailable):
        answering.newest()
    assert answering.silent_since == 5.0
    rows.may_answer = threading.Event()  # these two hang on
    rows.may_answer.set()
    assert answering.newest() == 7
    assert answering.silent_since is None
    assert len({*rows.asked}) == 3


def test_threads_are_few_and_used_again(rows: Rows) -> None:
    answering = Answering(rows, _PATIENCE / 10)
    rows.may_answer.clear()
    for _ in range(20):
        with pytest.raises(OutboxUnavailable):
            answering.newest()
    assert len({*rows.asked}) == 8
    rows.may_answer.set()

    def is_back() -> bool:
        try:
            return bool(answering.newest() == 7)
        except OutboxUnavailable:
            return False

    until(is_back, 30, "one of them has been answered")
    assert len({*rows.asked}) == 8


@pytest.fixture
def app(tmp_path: Path) -> App:
    broker, leases = (f"sqlite:///{tmp_path / name}" for name in ("broker.db", "leases.db"))
    return App("desk", broker=broker, settings={"leases": leases, "lease_ttl": 1.0})


def test_a_relay_without_a_database_leaves_the_lease_to_another_until_it_answers(
    app: App, rows: Rows, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "worker.outbox")
    here, there = Answering(rows, _PATIENCE), Answering(Rows(), _PATIENCE)
    stop = threading.Event()
    with Holding(app, here, 0.5) as lease:

        def may_go_on() -> bool:
            return lease.is_mine() and not stop.is_set()

        loop = Loop(Relay(app, here, may_go_on), here, may_go_on, stop, pause=0.01)
        thread = threading.Thread(target=loop.stand)
        thread.start()
        try:
            until(lambda: len(rows.asked) > 1, 30, "it is at work")
            with Holding(app, there, 0.5) as other:
                assert lease.is_mine()
                assert not other.is_mine()
                rows.is_away = True
                until(other.is_mine, 30, "the other one has the lease")
                assert not lease.is_mine()
                rows.is_away = False
            until(lease.is_mine, 30, "the first one has it again")
            told = [text for text in caplog.messages if "the lease is left to other" in text]
            assert len(told) == 1
        finally:
            stop.set()
            thread.join(30)


def test_at_the_end_nobody_has_it(app: App, rows: Rows) -> None:
    for _ in range(2):
        with Holding(app, Answering(rows), 60) as lease:
            assert lease.is_mine(), "it was given back"
        assert not lease.is_mine()
