"""Connections to one embedded broker of a test's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kombu.connection
import pytest

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
