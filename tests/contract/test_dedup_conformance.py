"""Every store of the core passes the suite that authors of backends are given."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import pytest

from servers import ClusterOfOne, PostgreSQL, Redis
from worker.testing.dedup_suite import DedupStoreSuite, Features


class TestMemory(DedupStoreSuite):
    features = Features(shared=False, survives_restart=False)

    @pytest.fixture
    def dedup_url(self) -> str:
        return f"memory://{uuid4()}"


class TestSqlite(DedupStoreSuite):
    @pytest.fixture
    def dedup_url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path}/dedup.db"


class TestPostgres(DedupStoreSuite):
    @pytest.fixture(autouse=True)
    def server(self, postgres: PostgreSQL) -> None:
        self.postgres = postgres

    @pytest.fixture
    def dedup_url(self, postgres_url: str) -> str:
        return postgres_url

    def restart(self) -> None:
        self.postgres.restart()


class TestRedis(DedupStoreSuite):
    @pytest.fixture(autouse=True)
    def server(self, redis_server: Redis) -> None:
        self.redis = redis_server

    @pytest.fixture
    def dedup_url(self, redis_url: str) -> str:
        return redis_url

    def restart(self) -> None:
        self.redis.restart()


class TestRedisCluster(DedupStoreSuite):
    @pytest.fixture(autouse=True)
    def server(self, cluster_of_one: ClusterOfOne) -> None:
        self.redis = cluster_of_one

    @pytest.fixture
    def dedup_url(self) -> str:
        return self.redis.fresh_url()

    def restart(self) -> None:
        self.redis.restart()
