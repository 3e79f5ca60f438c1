"""Where trials play: on RabbitMQ and Redis, and on one SQLite file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from chaos.faults.redis_clock import RedisByClock
from chaos.places import Place
from chaos.stage import Stage
from chaos.workloads import Workload
from servers import Guard

_OPTIONS = ("--processes", "2")


@pytest.fixture(scope="session")
def chaos_redis(
    tmp_path_factory: pytest.TempPathFactory, server_guard: Guard
) -> Iterator[RedisByClock]:
    """A Redis whose clock can be stepped."""
    with RedisByClock(tmp_path_factory.mktemp("chaos_redis"), server_guard) as server:
        yield server


@pytest.fixture
def stage(
    request: pytest.FixtureRequest, tmp_path: Path, server_guard: Guard
) -> Iterator[Callable[..., Stage]]:
    """Make stages: ``stage("servers", Ledger(1))``, ``stage("embedded", Bank(1))``."""
    with ExitStack() as stack:

        def make(place: str, workload: Workload, **options: Any) -> Stage:
            if place == "servers":
                rabbitmq, redis = map(request.getfixturevalue, ("rabbitmq", "chaos_redis"))
                at = stack.enter_context(Place.on_servers(rabbitmq, redis))
            else:
                at = stack.enter_context(Place.on_a_file(tmp_path))
            # Of a setting the stage knows that it may change while the service runs.
            usual = {"transactional": False, "options": _OPTIONS, "shards": 4}
            settings: dict[str, Any] = usual | options
            return stack.enter_context(
                Stage(tmp_path / "stage", server_guard, workload, at, **settings)
            )

        yield make
