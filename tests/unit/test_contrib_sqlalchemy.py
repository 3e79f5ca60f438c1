"""Rows of the inbox and the outbox: what is kept of an id, and the SQL of each dialect."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import create_mock_engine
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.exc import OperationalError
from worker.contrib.identity import plain
from worker.contrib.missing import is_missing_table
from worker.contrib.outbox import Bounds, OutboxUnavailable
from worker.contrib.sqlalchemy import create_tables
from worker.contrib.sqlalchemy.inbox import insert_if_new
from worker.contrib.sqlalchemy.rows import OutboxRows, reading, removing, waiting_briefly

from worker import ConfigurationError


def created(url: str) -> str:
    """Return the SQL that makes the tables."""
    said: list[str] = []

    def note(statement: Any, *_: Any, **__: Any) -> None:
        said.append(str(statement.compile(dialect=engine.dialect)))

    engine: Any = create_mock_engine(url, note)
    create_tables(engine)
    return "\n".join(said)


def test_an_id_is_kept_as_it_is() -> None:
    assert plain("0198c4f2-8d5e-7b1a-9c3d-2f4e6a8b0c1d") == "0198c4f2-8d5e-7b1a-9c3d-2f4e6a8b0c1d"
    assert plain("bank.deposit") == "bank.deposit"


@given(st.text(min_size=1, max_size=2000), st.text(min_size=1, max_size=2000))
def test_any_two_ids_differ_in_what_every_database_compares_the_same(one: str, other: str) -> None:
    kept = plain(one)
    assert kept.isascii()
    assert kept.isprintable()
    assert " " not in kept
    assert len(kept) <= 255
    assert (kept == plain(other)) == (one == other)


@pytest.mark.parametrize("odd", ["a ", "a\0", "\ud800", "é", "x" * 1024])
def test_what_a_database_may_refuse_fold_or_cut_is_hashed(odd: str) -> None:
    assert plain(odd).startswith("blake2b:")


@pytest.mark.parametrize(
    ("name", "dialect", "told"),
    [
        ("postgresql", postgresql, "ON CONFLICT DO NOTHING"),
        ("sqlite", sqlite, "ON CONFLICT DO NOTHING"),
        ("mysql", mysql, "INSERT IGNORE INTO qworker_inbox"),
        ("mariadb", mysql, "INSERT IGNORE INTO qworker_inbox"),
    ],
)
def test_a_row_is_inserted_once_in_each_dialect(name: str, dialect: Any, told: str) -> None:
    assert told in str(insert_if_new(name).compile(dialect=dialect.dialect()))


@pytest.mark.parametrize(
    ("told", "facts", "is_missing"),
    [
        (("no such table: qworker_inbox",), {}, True),
        (("relation does not exist",), {"sqlstate": "42P01"}, True),  # psycopg, asyncpg
        (("relation does not exist",), {"pgcode": "42P01"}, True),  # psycopg2
        ((1146, "Table 'bank.qworker_inbox' doesn't exist"), {}, True),  # PyMySQL, mysqlclient
        (("database is locked",), {}, False),
        (("permission denied for table qworker_inbox",), {"sqlstate": "42501"}, False),
        ((1205, "Lock wait timeout exceeded"), {}, False),
        ((), {}, False),
    ],
)
def test_a_table_that_is_not_there_is_known_by_the_error_of_each_driver(
    told: tuple[object, ...], facts: dict[str, str], is_missing: bool
) -> None:
    error = Exception(*told)
    vars(error).update(facts)

    assert is_missing_table(error) is is_missing


def test_another_database_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="oracle"):
        insert_if_new("oracle")


def test_mysql_compares_ids_by_their_bytes() -> None:
    columns = [line.split() for line in created("mysql+pymysql://").splitlines()]
    compared = [words for words in columns if words[:1] in (["handler"], ["message_id"], ["lane"])]
    assert len(compared) == 4
    for words in compared:
        assert "CHARACTER SET ascii COLLATE ascii_bin" in " ".join(words)


def test_mysql_keeps_bodies_as_long_as_any() -> None:
    told = created("mysql+pymysql://")
    assert "body LONGBLOB NOT NULL" in told
    assert "headers LONGTEXT NOT NULL" in told
    assert "sequence BIGINT NOT NULL AUTO_INCREMENT" in told


def test_mysql_waits_for_rows_that_are_not_to_be_seen_yet() -> None:
    query = reading("desk", 10, Bounds(after=5, lanes=["a"], without=["b"]))
    query = query.with_for_update(read=True)
    told = str(query.compile(dialect=mysql.dialect()))
    assert told.endswith("LOCK IN SHARE MODE")


def test_only_on_postgresql_locked_rows_are_left_to_a_later_pass() -> None:
    dialect: Any = postgresql.dialect
    skipping = removing([1], skips_locked=True).compile(dialect=dialect())
    assert "FOR UPDATE SKIP LOCKED" in str(skipping)
    assert "SKIP LOCKED" not in str(removing([1], skips_locked=False))


@pytest.mark.parametrize("fails", [False, True])
def test_a_session_of_mysql_has_its_own_patience_again(*, fails: bool) -> None:
    """The pool may hand it to the application next."""
    said: list[str] = []

    class Session:
        def scalar(self, query: object) -> int:
            assert str(query) == "SELECT @@innodb_lock_wait_timeout"
            return 50

        def execute(self, statement: object) -> None:
            said.append(str(statement))

    session: Any = Session()
    with (
        pytest.raises(OperationalError) if fails else nullcontext(),
        waiting_briefly(session),
    ):
        assert said[0] == "SET innodb_lock_wait_timeout = 1"
        if fails:
            raise OperationalError("SELECT", {}, Exception("Lock wait timeout exceeded"))
    assert said[-1] == "SET innodb_lock_wait_timeout = 50"


@pytest.mark.parametrize(
    ("url", "seconds"),
    [
        ("postgresql://u@127.0.0.1/bank", "10"),
        ("postgresql+psycopg://u@127.0.0.1/bank?connect_timeout=3", "3"),
    ],
)
def test_a_server_that_vanishes_is_given_up_unless_the_url_says_otherwise(
    url: str, seconds: str
) -> None:
    seen: list[dict[str, Any]] = []
    rows = OutboxRows.open(url, "desk")

    def note(*_: Any, **parameters: Any) -> None:
        seen.append(parameters)
        raise psycopg.OperationalError("not here")

    rows._engine.dialect.connect = note
    with pytest.raises(OutboxUnavailable, match="not here"):
        rows.newest()
    assert str(seen[0]["connect_timeout"]) == seconds
    assert seen[0]["tcp_user_timeout"] == 10_000
