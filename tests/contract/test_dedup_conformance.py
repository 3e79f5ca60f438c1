"""Every store of the core passes the suite that authors of backends are given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from uuid import uuid4

import pytest
import redis

from servers import Guard, Redis
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


class TestRedis(DedupStoreSuite):
    @pytest.fixture(autouse=True)
    def server(self, redis_server: Redis) -> None:
        self.redis = redis_server

    @pytest.fixture
    def dedup_url(self, redis_url: str) -> str:
        return redis_url

    def restart(self) -> None:
        self.redis.restart()


class ClusterOfOne(Redis):
    """A Redis Cluster whose one server has every hash slot."""

    def command(self) -> Sequence[str | Path]:
        return [*super().command(), "--cluster-enabled", "yes", "--databases", "1"]

    def fresh_url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/?cluster=1&prefix={uuid4()}:"

    def answers(self) -> bool:
        """A cluster's server answers before it serves."""
        if not super().answers():
            return False
        with redis.Redis(port=self.port) as client:
            if client.cluster("info")["cluster_slots_assigned"] == "0":
                client.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
            return bool(client.cluster("info")["cluster_state"] == "ok")


@pytest.fixture(scope="module")
def cluster_of_one(
    tmp_path_factory: pytest.TempPathFactory, server_guard: Guard
) -> Iterator[ClusterOfOne]:
    with ClusterOfOne(tmp_path_factory.mktemp("cluster"), server_guard) as server:
        yield server


class TestRedisCluster(DedupStoreSuite):
    @pytest.fixture(autouse=True)
    def server(self, cluster_of_one: ClusterOfOne) -> None:
        self.redis = cluster_of_one

    @pytest.fixture
    def dedup_url(self) -> str:
        return self.redis.fresh_url()

    def restart(self) -> None:
        self.redis.restart()
