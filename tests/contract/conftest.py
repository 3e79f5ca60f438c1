"""Connections to one embedded broker of a test's own; a desk with an outbox."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import kombu.connection
import pytest
from sqlalchemy import Engine, create_engine
from worker.contrib.sqlalchemy import create_tables

from databases import Database
from djangos import DjangoDesk, pointed_at
from outboxes import AlchemyDesk, Desk
from shops import Shop
from worker import App
from worker.testing import TestWorker
from worker.transport.memory import forget

#: kombu's, without its half of types.
Connection: Any = kombu.connection.Connection

Connect = Callable[..., Any]


@pytest.fixture(params=["sqlite", "memory"])
def connect(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Connect]:
    """Opens connections to one broker of this test's own; closed at the end."""
    place = str(tmp_path / "broker.db") if request.param == "sqlite" else str(tmp_path)
    transport = f"worker.transport.{request.param}:Transport"
    opened = []

    def open_connection(**options: Any) -> Any:
        connection = Connection(transport=transport, virtual_host=place, transport_options=options)
        connection.connect()
        opened.append(connection)
        return connection

    yield open_connection
    for connection in opened:
        connection.release()
    forget(place.strip("/"))


@pytest.fixture(params=["sqlalchemy", "django"])
def integration(request: pytest.FixtureRequest) -> str:
    """By which of them the transactions of users are made."""
    kind: str = request.param
    return kind


@pytest.fixture
def engine(database: Database, integration: str) -> Iterator[Engine]:
    """The database with the tables of qworker, as that integration makes them."""
    is_file = database.kind == "sqlite"
    engine = create_engine(
        database.url, **({"connect_args": {"timeout": 60}} if is_file else {"pool_size": 20})
    )
    with ExitStack() as stack:
        stack.callback(engine.dispose)
        if integration == "django":
            stack.enter_context(pointed_at(database))
        else:
            create_tables(engine)
        yield engine


@pytest.fixture
def desk(engine: Engine, integration: str) -> Iterator[Desk]:
    """A service with an outbox in that database."""
    kind = DjangoDesk if integration == "django" else AlchemyDesk
    desk = kind(App("desk"), engine)
    yield desk
    desk.close()


@pytest.fixture
def shop(desk: Desk) -> Shop:
    """A service with an inbox in that database."""
    return Shop(desk)


@pytest.fixture
def worker(desk: Desk) -> Iterator[TestWorker]:
    """The broker, and all that reached it."""
    with TestWorker(desk.app) as worker:
        yield worker
