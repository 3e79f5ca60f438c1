"""Revisions in a PostgreSQL database that was laid out before there were any."""

from __future__ import annotations

import os
from collections.abc import Iterator

import psycopg
import pytest

from worker.dedup.base import RECORD_BYTES, Answer, Batch, Claim, Mark, StoreOptions, Verdict
from worker.dedup.postgres import PostgresStore

OPTIONS = StoreOptions()
PLACE = bytes(RECORD_BYTES)


@pytest.fixture
def admin(postgres_url: str) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    """The owner of a database of before."""
    PostgresStore.open(postgres_url, OPTIONS).close()
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("DROP TABLE qworker_dedup_revisions")
        yield connection


@pytest.mark.usefixtures("admin")
def test_a_database_of_before_gets_the_table(postgres_url: str) -> None:
    for _ in range(2):
        store = PostgresStore.open(postgres_url, OPTIONS)
        assert store.keeps_revisions
        assert store.apply(Batch(marks=[Mark(PLACE, 3)], looks=[PLACE])).revisions == (3,)
        store.close()


def test_a_user_who_may_not_make_the_table_goes_on_without_revisions(
    postgres_url: str, admin: psycopg.Connection[tuple[object, ...]]
) -> None:
    admin.execute("CREATE ROLE clerk LOGIN")
    try:
        admin.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO clerk")
        store = PostgresStore.open(postgres_url.replace("qworker@", "clerk@"), OPTIONS)
        assert store.keeps_revisions is False
        claim = Claim(os.urandom(RECORD_BYTES), bytes(11) + b"1", bytes(4))
        assert store.apply(Batch(claims=[claim])).claims == [Verdict(Answer.FRESH, 1)]
        store.close()
    finally:
        admin.execute("DROP OWNED BY clerk")
        admin.execute("DROP ROLE clerk")


def test_a_user_who_may_not_use_the_table_goes_on_without_revisions(
    postgres_url: str, admin: psycopg.Connection[tuple[object, ...]]
) -> None:
    admin.execute("CREATE ROLE clerk LOGIN")
    try:
        admin.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO clerk")
        PostgresStore.open(postgres_url, OPTIONS).close()  # the owner's release is a newer one
        store = PostgresStore.open(postgres_url.replace("qworker@", "clerk@"), OPTIONS)
        assert store.keeps_revisions is False
        store.close()
    finally:
        admin.execute("DROP OWNED BY clerk")
        admin.execute("DROP ROLE clerk")


def test_what_is_kept_long_enough_is_swept_and_nothing_else(
    postgres_url: str, admin: psycopg.Connection[tuple[object, ...]]
) -> None:
    def places() -> list[tuple[object, ...]]:
        return admin.execute("SELECT place FROM qworker_dedup_revisions").fetchall()

    store, other = PostgresStore.open(postgres_url, OPTIONS), bytes(RECORD_BYTES - 1) + b"1"
    store.apply(Batch(marks=[Mark(PLACE, 3), Mark(other, 4)]))
    store.close()
    admin.execute("UPDATE qworker_dedup_revisions SET expires = 1 WHERE place = %s", [PLACE])
    PostgresStore.open(postgres_url, OPTIONS).close()
    assert places() == [(other,)]
