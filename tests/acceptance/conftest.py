"""Fixtures of the acceptance tests: where a service runs, the service, and who publishes to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from acceptance.desk import PATIENCE, Desk, step
from acceptance.running import Load, Service
from machines.network import Network, can_make_machines
from machines.site import Site
from servers import Guard, RabbitMQ, Redis
from waiting import until
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
def on_postgresql(amqp_url: str, postgres_url: str) -> Place:
    """RabbitMQ and PostgreSQL."""
    return Place(amqp_url, postgres_url)


@pytest.fixture
def embedded(tmp_path: Path) -> Place:
    """One SQLite file."""
    return Place(f"sqlite:///{tmp_path / 'qworker.db'}", "")


@pytest.fixture(params=["servers", "embedded"])
def place(request: pytest.FixtureRequest) -> Place:
    """Each of both, for tests of promises that hold everywhere."""
    chosen: Place = request.getfixturevalue(request.param)
    return chosen


def long_on(place: str) -> pytest.MarkDecorator:
    """Leave a test's variant of that place to ``make chaos``: the other one is the same path."""
    places = [
        pytest.param(name, marks=pytest.mark.long) if name == place else name
        for name in ("servers", "embedded")
    ]
    return pytest.mark.parametrize("place", places, indirect=True)


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
def project(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Service]:
    """A folder of a user's own on nothing but SQLite, with the test file's ``APP`` as its app."""
    service = Service(tmp_path / "project", "handlers", broker="sqlite:///own.db")
    (service.folder / "handlers.py").write_text(request.module.APP)
    yield service
    service.end()


@pytest.fixture
def load(request: pytest.FixtureRequest) -> Iterator[Load]:
    """A publisher that outlasts outages, to the place that the test runs at."""
    known = ("place", "secured", "servers", "on_postgresql", "embedded")
    names = [name for name in known if name in request.fixturenames]
    place: Place = request.getfixturevalue(names[0])
    app = App("publisher", broker=place.broker, settings={"connect_timeout": 60})
    yield Load(app)
    app.close()


@pytest.fixture
def desk(tmp_path: Path, place: Place) -> Iterator[Desk]:
    """On RabbitMQ and Redis, and on SQLite: five dead letters, of two shards."""
    with closing(Desk(tmp_path, place)) as desk:
        desk.fail_five()
        yield desk


@pytest.fixture
def patient(tmp_path: Path, place: Place) -> Iterator[Desk]:
    """The same places; a service that parks the keys of what fails, with one key parked."""
    with closing(Desk(tmp_path, place, "patient")) as desk:
        desk.serve()
        desk.publish(step("k", 0), step("k", 1, "declined"), step("k", 2), step("other", 0))
        desk.publish(step("k", 3))
        until(lambda: desk.parked() == 3, PATIENCE, "the failed one and its successors are parked")
        yield desk


@pytest.fixture(scope="session")
def network() -> Iterator[Network | None]:
    """Machines for supervisors; none where this process may not make them."""
    if not can_make_machines():
        yield None
        return
    with Network() as made:
        yield made


@pytest.fixture
def needs_links(network: Network | None) -> None:
    """Skip a test that cuts links where there are none."""
    if network is None:
        # The one skip that is allowed: what is missing is no server but privileges, which no test
        # can get for itself. Continuous integration has to run as root, where nothing is skipped.
        pytest.skip("cutting links needs privileges (root and iproute2), not a server")


@dataclass(frozen=True, slots=True)
class Servers:
    """What the supervisors of a site reach."""

    rabbitmq: RabbitMQ
    redis: Redis


@pytest.fixture(scope="session")
def shared_servers(
    network: Network | None, tmp_path_factory: pytest.TempPathFactory, server_guard: Guard
) -> Iterator[Servers]:
    """A RabbitMQ and a Redis that machines reach too."""
    address = network.address if network else ""
    folders = map(tmp_path_factory.mktemp, ("shared_rabbitmq", "shared_redis"))
    with (  # one has its ports before the other looks for free ones
        RabbitMQ(next(folders), server_guard, also_at=address) as rabbitmq,
        Redis(next(folders), server_guard, also_at=address) as redis,
    ):
        yield Servers(rabbitmq, redis)


@pytest.fixture
def site(
    shared_servers: Servers, network: Network | None, tmp_path: Path, server_guard: Guard
) -> Iterator[Site]:
    """Supervisors on machines of their own, RabbitMQ and Redis."""
    with (
        shared_servers.rabbitmq.vhost() as broker,
        Site(
            tmp_path,
            server_guard,
            broker=broker,
            dedup=shared_servers.redis.fresh_url(),
            network=network,
        ) as made,
    ):
        yield made


@pytest.fixture
def file_site(embedded: Place, tmp_path: Path, server_guard: Guard) -> Iterator[Site]:
    """Supervisors that share one SQLite file, and so a machine."""
    with Site(tmp_path, server_guard, broker=embedded.broker, dedup="", network=None) as made:
        yield made


@pytest.fixture(params=["site", "file_site"], ids=["machines", "file"])
def any_site(request: pytest.FixtureRequest) -> Site:
    """Each of both, for promises that hold everywhere."""
    chosen: Site = request.getfixturevalue(request.param)
    return chosen
