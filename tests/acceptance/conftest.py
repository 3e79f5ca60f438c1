"""Fixtures of the acceptance tests: where a service runs, the service, and who publishes to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from acceptance.running import Load, Service
from servers import RabbitMQ, Redis
from worker import App


@dataclass(frozen=True, slots=True)
class Place:
    """A broker and a dedup store."""

    broker: str
    dedup: str


@pytest.fixture
def servers(amqp_url: str, redis_url: str) -> Place:
    """RabbitMQ and Redis."""
    return Place(amqp_url, redis_url)


@pytest.fixture
def secured(servers: Place, rabbitmq: RabbitMQ, redis_server: Redis) -> Place:
    """RabbitMQ and Redis by TLS."""
    broker = rabbitmq.over_tls(servers.broker)
    broker += f"?ssl_ca_certs={rabbitmq.certificates.authority}"
    return Place(broker, redis_server.over_tls(servers.dedup))


@pytest.fixture
def embedded(tmp_path: Path) -> Place:
    """One SQLite file."""
    return Place(f"sqlite:///{tmp_path / 'qworker.db'}", "")


@pytest.fixture(params=["servers", "embedded"])
def place(request: pytest.FixtureRequest) -> Place:
    """Each of both, for tests of promises that hold everywhere."""
    chosen: Place = request.getfixturevalue(request.param)
    return chosen


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """Make services: ``serve(place, "steps", claim_ttl=1)``. They are killed after the test."""
    with ExitStack() as stack:

        def make(place: Place, app: str, folder: str = "service", **settings: object) -> Service:
            reference = f"acceptance.apps.{app}"
            service = Service(
                tmp_path / folder, reference, broker=place.broker, dedup=place.dedup, **settings
            )
            stack.callback(service.end)
            return service

        yield make


@pytest.fixture
def load(request: pytest.FixtureRequest) -> Iterator[Load]:
    """A publisher that outlasts outages, to the place that the test runs at."""
    names = [n for n in ("place", "secured", "servers", "embedded") if n in request.fixturenames]
    place: Place = request.getfixturevalue(names[0])
    app = App("publisher", broker=place.broker, settings={"connect_timeout": 60})
    yield Load(app)
    app.close()
