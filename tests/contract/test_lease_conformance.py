"""Every lease store of the core passes the suite that authors of backends are given."""

from __future__ import annotations

import sqlite3
import sys
import time
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import pytest
import redis

from servers import ClusterOfOne, PostgreSQL, Redis
from waiting import until
from worker.errors import ConfigurationError, LeasesUnavailable, StoreCorrupt
from worker.leases.base import Held, LeaseOptions, LeaseStore, Sync
from worker.leases.memory import MemoryLeases
from worker.leases.open import known_services, open_leases
from worker.leases.postgres import PostgresLeases
from worker.testing.lease_suite import LeaseStoreSuite


class TestMemory(LeaseStoreSuite):
    shared = False

    @pytest.fixture
    def lease_url(self) -> str:
        return f"memory://{uuid4()}"


class TestSqlite(LeaseStoreSuite):
    @pytest.fixture
    def lease_url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path}/leases.db"


class TestPostgres(LeaseStoreSuite):
    @pytest.fixture
    def lease_url(self, postgres_url: str) -> str:
        return postgres_url


class TestRedis(LeaseStoreSuite):
    @pytest.fixture
    def lease_url(self, redis_url: str) -> str:
        return f"{redis_url}?settle=0"


class TestRedisCluster(LeaseStoreSuite):
    @pytest.fixture
    def lease_url(self, cluster_of_one: ClusterOfOne) -> str:
        return f"{cluster_of_one.fresh_url()}&settle=0"


@pytest.mark.parametrize("kind", ["memory", "sqlite", "postgres", "redis"])
def test_a_store_tells_which_services_it_knows(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    urls = {"memory": f"memory://{uuid4()}", "sqlite": f"sqlite:///{tmp_path}/leases.db"}
    url = urls.get(kind) or request.getfixturevalue(f"{kind}_url")
    store = open_leases(f"{url}?settle=0" if kind == "redis" else url, LeaseOptions())
    assert known_services(store) == []

    for service in ("bank", "müller.v2"):
        store.write(service, "plan", 0, "told")
        store.sync(service, Sync("ann"))

    expected = [] if kind == "memory" else ["bank", "müller.v2"]
    assert sorted(known_services(store)) == expected
    store.close()


def test_a_redis_that_was_just_started_grants_nothing_new_but_renews(
    redis_server: Redis, redis_url: str
) -> None:
    options = LeaseOptions(ttl=5.0)
    store = open_leases(redis_url, options)
    until(lambda: store.sync("bank", Sync("ann", acquire=["g1.0"])).held_by("ann"), 20)
    store.close()
    redis_server.kill()
    redis_server.start()

    view = store.sync("bank", Sync("bob", renew=[Held("g1.7", 3)], acquire=["g1.8"]))

    assert 0 < view.settling <= 6
    assert view.leases.keys() == {"g1.0", "g1.7"}
    until(lambda: store.sync("bank", Sync("bob", acquire=["g1.8"])).held_by("bob"), 20)
    store.close()


def test_a_redis_that_drops_keys_as_it_likes_is_refused(redis_url: str) -> None:
    options = LeaseOptions()
    with closing(redis.Redis.from_url(redis_url)) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            with pytest.raises(ConfigurationError, match=r"allkeys-lru.*leases.*noeviction"):
                open_leases(redis_url, options)
        finally:
            client.config_set("maxmemory-policy", "noeviction")
    open_leases(redis_url, options).close()


def test_a_redis_that_was_emptied_is_known_by_the_time_that_it_watched(redis_url: str) -> None:
    store = open_leases(redis_url, LeaseOptions())
    store.sync("bank", Sync("ann"))
    before = until(lambda: store.sync("bank", Sync("ann")).watched)
    with closing(redis.Redis.from_url(redis_url)) as client:
        client.flushdb()

    assert store.sync("bank", Sync("ann")).watched < before
    store.close()


def test_a_redis_knows_the_highest_epoch_also_of_leases_that_it_forgot(redis_url: str) -> None:
    store, ahead = open_leases(f"{redis_url}?settle=0", LeaseOptions()), 2**52
    store.sync("bank", Sync("ann", renew=[Held("g1.0", ahead)]))
    with closing(redis.Redis.from_url(redis_url)) as client:
        client.hdel("qw:leases:{bank}:leases", "g1.0")

    view = store.sync("bank", Sync("ann", acquire=["g2.0"]))

    assert view.leases["g2.0"].epoch == ahead + 1
    store.close()


def test_a_redis_of_before_that_epoch_was_kept_goes_on_from_its_leases(redis_url: str) -> None:
    store, ahead = open_leases(f"{redis_url}?settle=0", LeaseOptions()), 2**52
    store.sync("bank", Sync("ann", renew=[Held("g1.0", ahead)]))
    with closing(redis.Redis.from_url(redis_url)) as client:
        assert client.hdel("qw:leases:{bank}:clock", "granted")

    view = store.sync("bank", Sync("ann", acquire=["g2.0"]))

    assert view.leases["g2.0"].epoch == ahead + 1
    store.close()


def complaints(store: LeaseStore) -> list[str]:
    """Return what a store that somebody spoilt says to a member, and to one that looks."""
    with pytest.raises(StoreCorrupt) as synced:
        store.sync("bank", Sync("ann", acquire=["g1.1"]))
    with pytest.raises(StoreCorrupt) as looked:
        store.look("bank")
    return [str(synced.value), str(looked.value)]


SPOILT = {
    "a document without its version": ("documents", "plan", b'{"revision": 3}'),
    "bytes in a document": ("documents", "plan", b"1 \xff"),
    "a document under a name of bytes": ("documents", b"\xff", b"1 {}"),
    "a lease": ("leases", "g1.0", b"ann"),
    "the owner of a lease": ("leases", "g1.0", b"9000 1 \xff"),
    "a member": ("members", "eve", b"soon"),
    "the facts of a member": ("members", "eve", b"9000000 \xff"),
    "the clock": ("clock", "watched", b"noon"),
}


@pytest.mark.parametrize(("kind", "name", "value"), SPOILT.values(), ids=SPOILT)
def test_what_somebody_spoilt_in_a_redis_is_named_until_it_is_mended(
    redis_url: str, kind: str, name: str | bytes, value: bytes
) -> None:
    store, key = open_leases(f"{redis_url}?settle=0", LeaseOptions()), f"qw:leases:{{bank}}:{kind}"
    said = Sync("ann", acquire=["g1.1"])
    store.sync("bank", said)
    shown = name if isinstance(name, str) else r"\xff"
    with closing(redis.Redis.from_url(redis_url)) as client:
        client.hset(key, name, value)

        told = complaints(store)
        assert all(f'{key} "{shown}" cannot be read' in text for text in told)

        if kind == "clock":
            keys = [f"qw:leases:{{bank}}:{each}" for each in ("clock", "members", "leases")]
            assert all(f"(DEL {' '.join(keys)})" in text for text in told)
            client.delete(*keys)
        else:
            assert all(f'(HDEL {key} "{shown}")' in text for text in told)
            client.hdel(key, name)
    assert store.sync("bank", said).held_by("ann").keys() == {"g1.1"}
    store.close()


def test_a_document_that_somebody_spoilt_in_a_redis_is_not_taken_for_none(redis_url: str) -> None:
    store = open_leases(redis_url, LeaseOptions())
    with closing(redis.Redis.from_url(redis_url)) as client:
        client.hset("qw:leases:{bank}:documents", "plan", "{}")

    with pytest.raises(StoreCorrupt, match=r'qw:leases:\{bank\}:documents "plan"'):
        store.write("bank", "plan", 0, "other")
    store.close()


@pytest.mark.parametrize("book", ["", "[]", '{"layout":1}', '{"layout":7}', b"\xff"])
def test_a_book_that_somebody_spoilt_in_a_file_is_named_until_it_is_mended(
    tmp_path: Path, book: str | bytes
) -> None:
    file = tmp_path / "leases.db"
    store = open_leases(f"sqlite:///{file}", LeaseOptions())
    store.sync("bank", Sync("ann"))
    with closing(sqlite3.connect(file)) as db, db:
        db.execute("UPDATE lease_books SET book = ?", (book,))

    told = complaints(store)
    assert all(f"{file}, table lease_books, service 'bank': " in text for text in told)
    with closing(sqlite3.connect(file)) as db, db:
        db.execute("DELETE FROM lease_books WHERE service = 'bank'")
    assert store.sync("bank", Sync("ann")).members.keys() == {"ann"}
    store.close()


def test_a_redis_that_is_away_is_told_and_comes_back(redis_server: Redis, redis_url: str) -> None:
    store = open_leases(f"{redis_url}?settle=0", LeaseOptions(timeout=0.5))
    redis_server.kill()
    with pytest.raises(LeasesUnavailable, match="lease store redis://"):
        store.sync("bank", Sync("ann"))
    redis_server.start()

    assert store.sync("bank", Sync("ann")).members.keys() == {"ann"}
    store.close()


def test_a_machine_that_was_started_again_lets_old_leases_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock of a machine begins anew with it; what was owned before ends after a lease."""
    url, clock = f"sqlite:///{tmp_path}/leases.db", [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    store = open_leases(url, LeaseOptions(ttl=10.0))
    store.sync("bank", Sync("ann", acquire=["g1.0"]))
    clock[0] = 5.0
    seen = []
    for _ in range(12):
        view = store.sync("bank", Sync("bob", acquire=["g1.0"]))
        seen.append(view.leases["g1.0"].owner)
        clock[0] += 1.0
    assert seen == ["ann"] * 10 + ["bob"] * 2
    store.close()


@pytest.mark.parametrize("step", [3600.0, -3600.0])
def test_a_step_of_the_clock_ends_no_lease(step: float) -> None:
    clock = [0.0]
    store = MemoryLeases(LeaseOptions(ttl=10.0), clock=lambda: clock[0])
    store.sync("bank", Sync("ann", acquire=["g1.0"]))
    clock[0] += step

    view = store.sync("bank", Sync("bob", acquire=["g1.0"]))

    assert view.leases["g1.0"].owner == "ann"
    assert view.leases["g1.0"].left >= 7.5


def test_a_postgresql_that_is_away_is_told_and_comes_back(
    postgres: PostgreSQL, postgres_url: str
) -> None:
    store = open_leases(postgres_url, LeaseOptions())
    store.sync("bank", Sync("ann"))
    postgres.stop()
    with pytest.raises(LeasesUnavailable, match="lease store postgresql://"):
        store.sync("bank", Sync("ann"))
    postgres.start()

    assert store.sync("bank", Sync("ann")).members.keys() == {"ann"}
    store.close()


def test_a_postgresql_that_hangs_is_told_within_the_timeout(
    postgres: PostgreSQL, postgres_url: str
) -> None:
    store = open_leases(postgres_url, LeaseOptions(timeout=2.0))
    store.sync("bank", Sync("ann"))
    with postgres.standing_still():
        began = time.monotonic()
        with pytest.raises(LeasesUnavailable, match="timeout"):
            store.sync("bank", Sync("ann"))
        assert time.monotonic() - began < 4.0

    assert store.sync("bank", Sync("ann")).members.keys() == {"ann"}
    store.close()


def test_a_member_that_sleeps_in_the_midst_of_a_call_keeps_the_others_waiting_for_a_moment(
    postgres_url: str,
) -> None:
    sleeper, store = (
        PostgresLeases.open(postgres_url, LeaseOptions(timeout=each)) for each in (0.5, 10.0)
    )
    store.sync("bank", Sync("ann"))

    def sleep() -> None:
        with sleeper._transaction() as line:
            sleeper._lock(line, "bank")
            assert store.sync("bank", Sync("ann")).members.keys() == {"ann"}
            line.execute("SELECT 1")

    with pytest.raises(LeasesUnavailable, match="timeout"):
        sleep()
    sleeper.close()
    store.close()


def test_a_database_that_does_not_exist_is_a_mistake(postgres_url: str) -> None:
    url = postgres_url.rpartition("/")[0] + "/nowhere"
    with pytest.raises(ConfigurationError, match=r'"nowhere" does not exist'):
        open_leases(url, LeaseOptions())


def test_an_extra_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    for module in ("worker.leases.postgres", "worker.stores.postgres"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(ConfigurationError, match=r"pip install '\.\[postgres\]'"):
        open_leases("postgresql://user:secret@host/database", LeaseOptions())
