"""Rows of the inbox: what is kept of an id, and the SQL of each dialect."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import create_mock_engine
from sqlalchemy.dialects import mysql, postgresql, sqlite
from worker.contrib.sqlalchemy import create_tables
from worker.contrib.sqlalchemy.inbox import insert_if_new
from worker.contrib.sqlalchemy.tables import plain

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


def test_another_database_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="oracle"):
        insert_if_new("oracle")


def test_mysql_compares_ids_by_their_bytes() -> None:
    (handler, message_id) = [
        line for line in created("mysql+pymysql://").splitlines() if "VARCHAR" in line
    ]
    assert "CHARACTER SET ascii COLLATE ascii_bin" in handler
    assert "CHARACTER SET ascii COLLATE ascii_bin" in message_id
