"""Where trials play: on RabbitMQ and Redis, and on one SQLite file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from chaos.stage import Stage
from chaos.workloads import Workload
from servers import Guard

_OPTIONS = ("--shards", "4", "--processes", "2", "--concurrency", "8")


@pytest.fixture
def stage(
    request: pytest.FixtureRequest, tmp_path: Path, server_guard: Guard
) -> Iterator[Callable[..., Stage]]:
    """Make stages: ``stage("servers", Ledger(1))``, ``stage("embedded", Bank(1))``."""
    with ExitStack() as stack:

        def make(place: str, workload: Workload, **options: Any) -> Stage:
            if place == "servers":
                broker, dedup = (request.getfixturevalue(n) for n in ("amqp_url", "redis_url"))
            else:
                broker, dedup = f"sqlite:///{tmp_path / 'qworker.db'}", ""
            settings: dict[str, Any] = {"transactional": False, "options": _OPTIONS} | options
            made = Stage(
                tmp_path / "stage", server_guard, workload, broker=broker, dedup=dedup, **settings
            )
            return stack.enter_context(made)

        yield make
