"""Every lease store of the core passes the suite that authors of backends are given."""

from __future__ import annotations

import sys
import time
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import pytest
import redis

from servers import ClusterOfOne, PostgreSQL, Redis
from waiting import until
from worker.errors import ConfigurationError, LeasesUnavailable
from worker.leases.base import Held, LeaseOptions, Sync
from worker.leases.memory import MemoryLeases
from worker.leases.open import open_leases
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


def test_a_redis_that_was_just_started_grants_nothing_new_but_renews(
    redis_server: Redis, redis_url: str
) -> None:
    options = LeaseOptions(ttl=1.0)
    store = open_leases(redis_url, options)
    until(lambda: store.sync("bank", Sync("ann", acquire=["g1.0"])).held_by("ann"), 20)
    store.close()
    redis_server.kill()
    redis_server.start()

    view = store.sync("bank", Sync("bob", renew=[Held("g1.7", 3)], acquire=["g1.8"]))

    assert 0 < view.settling <= 2
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


def test_a_database_that_does_not_exist_is_a_mistake(postgres_url: str) -> None:
    url = postgres_url.rpartition("/")[0] + "/nowhere"
    with pytest.raises(ConfigurationError, match=r'"nowhere" does not exist'):
        open_leases(url, LeaseOptions())


def test_an_extra_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    monkeypatch.delitem(sys.modules, "worker.leases.postgres", raising=False)
    with pytest.raises(ConfigurationError, match=r"pip install 'qworker-runtime\[postgres\]'"):
        open_leases("postgresql://user:secret@host/database", LeaseOptions())
