"""The rows of the outbox on a PostgreSQL whose sessions hang, or wait for each other."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from threading import Event
from typing import Any

import psycopg
import pytest
from django.db import connections
from worker.contrib.outbox import OutboxUnavailable
from worker.contrib.outbox.answering import Answering
from worker.contrib.sqlalchemy import OutboxRows

from databases import Database
from django_settings import configuration
from djangos import pointed_at
from outboxes import AlchemyDesk, Desk, Noted
from waiting import until

pytestmark = pytest.mark.parametrize("database", ["postgresql"], indirect=True)

#: The sessions of others that have asked for the newest row, or removed one.
_SESSIONS = (
    "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
    " AND pid <> pg_backend_pid() AND query ~* '(max\\(|delete).*qworker_outbox'"
)
_LOCK = "SELECT sequence FROM qworker_outbox ORDER BY sequence LIMIT 1 FOR UPDATE"


@pytest.fixture
def rows(desk: Desk, database: Database) -> Iterator[Any]:
    """Those of a relay, which share no connection with the desk."""
    rows = OutboxRows.open(database.url, "desk") if isinstance(desk, AlchemyDesk) else desk.rows
    yield rows
    rows.close()


@pytest.fixture
def looking(database: Database) -> Iterator[psycopg.Connection[Any]]:
    url = database.url.replace("+psycopg", "")
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


@contextmanager
def stopped(looking: psycopg.Connection[Any]) -> Iterator[None]:
    """Let the server's processes for these sessions stand still."""
    pids = [pid for (pid,) in looking.execute(_SESSIONS)]
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def test_a_session_that_hangs_is_given_up_and_another_one_answers(
    desk: Desk, rows: Any, looking: psycopg.Connection[Any]
) -> None:
    desk.leave(Noted(key="a", number=0))
    answering = Answering(rows, 1.0)
    newest = answering.newest()
    with stopped(looking):
        with pytest.raises(OutboxUnavailable, match="has not answered for 1 seconds"):
            answering.newest()
        assert until(lambda: _newest(answering), 30, "another connection is made") == newest
        assert answering.silent_since is None
    until(lambda: len(answering._idle) == answering._count, 30, "the one that hung is answered")


def _newest(rows: Answering) -> int:
    """Return the newest row; 0 where there is no answer: a machine may be slow."""
    with suppress(OutboxUnavailable):
        newest: int = rows.newest()
        return newest
    return 0


def test_a_row_that_somebody_has_locked_holds_up_no_other(
    desk: Desk, rows: Any, looking: psycopg.Connection[Any]
) -> None:
    for key in ("a", "b"):
        desk.leave(Noted(key=key, number=0))
    both = [entry.sequence for entry in rows.read(10)]
    with ThreadPoolExecutor(1) as relay:
        with looking.transaction():
            ((locked,),) = looking.execute(_LOCK).fetchall()
            relay.submit(rows.remove, both).result(30)
            assert [entry.sequence for entry in rows.read(10)] == [locked]
        relay.submit(rows.remove, [locked]).result(30)
    assert desk.left() == 0


@pytest.mark.parametrize("integration", ["sqlalchemy"], indirect=True)
def test_who_is_stopped_after_a_removal_keeps_no_lock(
    desk: Desk, rows: OutboxRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it would have told the database next."""
    desk.leave(Noted(key="a", number=0))
    goes_on, is_stopped = Event(), Event()
    commit = rows._engine.dialect.do_commit

    def stop_and_commit(connection: Any) -> None:
        is_stopped.set()
        assert goes_on.wait(60)
        commit(connection)

    with ThreadPoolExecutor(1) as relay:
        newest = rows.newest()
        monkeypatch.setattr(rows._engine.dialect, "do_commit", stop_and_commit)
        removing = relay.submit(rows.remove, [newest])
        try:
            assert is_stopped.wait(30)
            monkeypatch.undo()
            assert desk.left() == 0
        finally:
            goes_on.set()
        removing.result(30)


@pytest.mark.parametrize("integration", ["django"], indirect=True)
def test_rows_are_removed_for_good_also_where_the_settings_have_no_autocommit(
    desk: Desk, rows: Any, database: Database
) -> None:
    desk.leave(Noted(key="a", number=0))
    manual = {**configuration(database.url), "AUTOCOMMIT": False}
    with pointed_at(database, default=manual):
        try:
            rows.remove([rows.newest()])
        finally:
            connections["default"].close()
        assert desk.left() == 0
        rows.close()
