"""Servers for whoever asks: started at the first use, shared by the run, ended with it.

A test asks for ``amqp_url``, ``redis_url``, ``postgres_url`` or ``mariadb_url`` and gets an empty
place of its own. A test that stops or kills a server asks for the server itself (``rabbitmq``,
``redis_server``, ``postgres``, ``mariadb``) as well; the next test's ``…_url`` starts it again
where that is needed.
"""

from __future__ import annotations

import compileall
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

from databases import Database
from servers import ClusterOfOne, Guard, PostgreSQL, RabbitMQ, Redis
from servers.mariadb import MariaDB

_FIGURES = "figures"
_ROOT = Path(__file__).parents[1]
#: What the processes that tests start import of this repository.
_IMPORTED = ("worker", "contrib", "tests/acceptance/apps", "tests/supervised")

# How long an example takes says something of the machine, and nothing of the code.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


def pytest_configure(config: pytest.Config) -> None:
    """Compile once what thousands of processes import: a third of the start of each.

    They write no bytecode themselves: a module that a test writes twice within a second, as long as
    before, would be read as it was.
    """
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    # A shell has its background jobs ignore Ctrl-C, and so would the commands under test.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if not hasattr(config, "workerinput"):  # a worker's controller has done it
        for folder in _IMPORTED:
            compileall.compile_dir(_ROOT / folder, quiet=2)


@pytest.fixture
def tell(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Print a line at the end of the run, whichever process the test ran in."""

    def tell_it(line: str) -> None:
        request.node.user_properties.append((_FIGURES, line))

    return tell_it


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests had to tell."""
    reports = [report for some in terminalreporter.stats.values() for report in some]
    told = [
        line
        for report in reports
        if getattr(report, "when", "") == "call"
        for name, line in report.user_properties
        if name == _FIGURES
    ]
    if told:
        terminalreporter.section("figures")
        terminalreporter.write_line("\n".join(told))


@pytest.fixture(scope="session")
def server_guard() -> Iterator[Guard]:
    """The process that ends the servers when pytest cannot."""
    with Guard() as guard:
        yield guard


@pytest.fixture(scope="session")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory, server_guard: Guard) -> Iterator[RabbitMQ]:
    """A RabbitMQ of this run's own."""
    with RabbitMQ(tmp_path_factory.mktemp("rabbitmq"), server_guard) as server:
        yield server


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory, server_guard: Guard) -> Iterator[Redis]:
    """A Redis of this run's own."""
    with Redis(tmp_path_factory.mktemp("redis"), server_guard) as server:
        yield server


@pytest.fixture(scope="session")
def cluster_of_one(
    tmp_path_factory: pytest.TempPathFactory, server_guard: Guard
) -> Iterator[ClusterOfOne]:
    """A Redis Cluster of this run's own."""
    with ClusterOfOne(tmp_path_factory.mktemp("cluster"), server_guard) as server:
        yield server


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory, server_guard: Guard) -> Iterator[PostgreSQL]:
    """A PostgreSQL of this run's own."""
    with PostgreSQL(tmp_path_factory.mktemp("postgres"), server_guard) as server:
        yield server


@pytest.fixture(scope="session")
def mariadb(tmp_path_factory: pytest.TempPathFactory, server_guard: Guard) -> Iterator[MariaDB]:
    """A MariaDB of this run's own."""
    with MariaDB(tmp_path_factory.mktemp("mariadb"), server_guard) as server:
        yield server


@pytest.fixture
def amqp_url(rabbitmq: RabbitMQ) -> Iterator[str]:
    """An empty virtual host."""
    with rabbitmq.vhost() as url:
        yield url


@pytest.fixture
def redis_url(redis_server: Redis) -> str:
    """An empty Redis database."""
    return redis_server.fresh_url()


@pytest.fixture
def postgres_url(postgres: PostgreSQL) -> str:
    """An empty PostgreSQL database."""
    return postgres.fresh_url()


@pytest.fixture
def mariadb_url(mariadb: MariaDB) -> str:
    """An empty MariaDB database."""
    return mariadb.fresh_url()


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def database(request: pytest.FixtureRequest) -> Database:
    """An empty database of each kind, for the transactions of users."""
    return Database.of(request.param, request)
