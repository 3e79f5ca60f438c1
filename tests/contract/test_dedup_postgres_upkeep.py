"""The PostgreSQL store's upkeep: what goes wrong with it, or takes long, keeps nobody away."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import psycopg
import pytest
from psycopg.sql import SQL, Identifier

from worker.dedup import upkeep
from worker.dedup.base import StoreOptions
from worker.dedup.postgres import PostgresStore
from worker.errors import DedupUnavailable
from worker.testing.dedup_peer import DUPLICATE, FRESH, KEPT, Peer, new_record

Admin = psycopg.Connection[tuple[object, ...]]
OPTIONS = StoreOptions()


@pytest.fixture
def admin(postgres_url: str) -> Iterator[Admin]:
    """A connection of the test's own, as the owner of the server."""
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        yield connection


@contextmanager
def opened(url: str) -> Iterator[Peer]:
    """A process that comes up."""
    with closing(PostgresStore.open(url, OPTIONS)) as store:
        yield Peer(store)


def partitions(admin: Admin) -> set[str]:
    rows = admin.execute(
        "SELECT inhrelid::regclass::text FROM pg_inherits"
        " WHERE inhparent = 'qworker_dedup_done'::regclass"
    )
    return {str(name) for (name,) in rows}


def held(admin: Admin) -> object:
    ((number,),) = admin.execute("SELECT count(*) FROM qworker_dedup_held")
    return number


def works(peer: Peer) -> bool:
    record = new_record()
    return (
        peer.claim(record).answer is FRESH
        and peer.complete(record) is KEPT
        and peer.claim(record).answer is DUPLICATE
    )


def let_it_be_forgotten(admin: Admin, peer: Peer, number: int) -> None:
    """So many records, each in a block of its own."""
    admin.execute(
        """ALTER TABLE qworker_dedup_held ADD COLUMN wide text DEFAULT repeat('x', 7000),
            ALTER COLUMN wide SET STORAGE PLAIN"""
    )
    for _ in range(number):
        peer.claim(new_record())
    admin.execute("UPDATE qworker_dedup_held SET deadline = 1")


def let_each_take(admin: Admin, seconds: float) -> None:
    """As it is where millions of dead rows lie between, which no vacuum may remove."""
    admin.execute(
        SQL("""CREATE FUNCTION take_long() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN PERFORM pg_sleep({}); RETURN OLD; END $$;
        CREATE TRIGGER slow BEFORE DELETE ON qworker_dedup_held
            FOR EACH ROW WHEN (OLD.deadline = 1) EXECUTE FUNCTION take_long()""").format(seconds)
    )


def test_a_sweep_that_takes_long_keeps_neither_a_new_process_nor_a_batch_waiting(
    postgres_url: str, admin: Admin
) -> None:
    with opened(postgres_url) as peer:
        let_it_be_forgotten(admin, peer, 40)
    let_each_take(admin, 0.05)
    began = time.monotonic()
    with opened(postgres_url) as peer:
        assert works(peer)
        assert time.monotonic() - began < OPTIONS.timeout * 0.75


def test_a_sweep_that_takes_long_goes_on_from_where_it_came_to(
    postgres_url: str, admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    for pause in ("_PAUSE", "_SWEEP_EVERY"):
        monkeypatch.setattr(upkeep, pause, 0.0)
    with opened(postgres_url) as peer:
        let_it_be_forgotten(admin, peer, 80)
    let_each_take(admin, 0.03)
    with opened(postgres_url) as peer:
        give_up = time.monotonic() + 20
        while held(admin) != 0 and time.monotonic() < give_up:
            began = time.monotonic()
            assert works(peer)
            assert time.monotonic() - began < OPTIONS.timeout * 0.75
    assert held(admin) == 0


def test_a_partition_that_cannot_be_dropped_keeps_nobody_away_and_is_told_of_once(
    postgres_url: str, admin: Admin, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(postgres_url):
        pass
    for name, lower in (("looked_at", 1), ("past", 2)):
        admin.execute(
            SQL("CREATE TABLE {} PARTITION OF qworker_dedup_done FOR VALUES FROM ({}) TO ({})")
            .format(Identifier(name), lower, lower + 1)
        )  # fmt: skip
    admin.execute("CREATE VIEW operators AS SELECT * FROM looked_at")
    with caplog.at_level(logging.WARNING, "worker.dedup"), opened(postgres_url) as peer:
        assert works(peer)
    assert [record.getMessage().count("looked_at") > 0 for record in caplog.records] == [True]
    assert "past" not in partitions(admin)
    assert "looked_at" in partitions(admin)
    admin.execute("DROP VIEW operators")
    with opened(postgres_url):
        assert "looked_at" not in partitions(admin)


def test_room_that_cannot_be_made_ahead_of_time_keeps_nobody_away_while_there_is_some(
    postgres_url: str, admin: Admin, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(postgres_url):
        pass
    for name in partitions(admin):
        admin.execute(SQL("DROP TABLE {}").format(Identifier(name)))
    due = int(time.time() + OPTIONS.retention)
    admin.execute(
        SQL(
            "CREATE TABLE last PARTITION OF qworker_dedup_done FOR VALUES FROM ({}) TO ({})"
        ).format(due - 60, due + 3600)
    )
    admin.execute(
        """CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE 'no tables today'; END $$;
        CREATE EVENT TRIGGER strict ON ddl_command_start WHEN TAG IN ('CREATE TABLE')
            EXECUTE FUNCTION refuse()"""
    )
    with caplog.at_level(logging.WARNING, "worker.dedup"), opened(postgres_url) as peer:
        assert works(peer)
    assert ["no tables today" in record.getMessage() for record in caplog.records] == [True]
    admin.execute("DROP EVENT TRIGGER strict")
    with opened(postgres_url):
        assert len(partitions(admin)) == 2


def test_a_session_that_ends_in_the_midst_of_it_is_a_server_that_is_away(
    postgres_url: str, admin: Admin, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(postgres_url) as peer:
        let_it_be_forgotten(admin, peer, 1)
    admin.execute(
        """CREATE FUNCTION end_it() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN OLD; END $$;
        CREATE TRIGGER fatal BEFORE DELETE ON qworker_dedup_held
            FOR EACH ROW EXECUTE FUNCTION end_it()"""
    )
    with pytest.raises(DedupUnavailable, match="terminating connection"), opened(postgres_url):
        pass
    assert not caplog.records


def test_ids_are_forgotten_also_where_all_tables_are_published(
    postgres_url: str, admin: Admin
) -> None:
    admin.execute("CREATE PUBLICATION everything FOR ALL TABLES")
    with opened(postgres_url) as peer:
        record = new_record()
        peer.complete(record)
        assert peer.store.forget([record]) == set()
        assert peer.claim(record).answer is FRESH


def test_what_an_older_version_made_is_published_too(postgres_url: str, admin: Admin) -> None:
    admin.execute("CREATE PUBLICATION everything FOR ALL TABLES")
    with opened(postgres_url) as peer:
        record = new_record()
        peer.complete(record)
    for name in partitions(admin):
        admin.execute(SQL("ALTER TABLE {} REPLICA IDENTITY DEFAULT").format(Identifier(name)))
    with opened(postgres_url) as peer:
        assert peer.store.forget([record]) == set()
        assert peer.claim(record).answer is FRESH
