"""Every broker that the runtime knows passes the suite that authors of transports are given."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar
from uuid import uuid4

import pytest
from hypothesis.stateful import invariant

from worker.testing.transport_model import TransportMachine
from worker.testing.transport_suite import Features, TransportConformance
from worker.transport.memory import forget

EMBEDDED = Features(batches=True, spreads_keys=True, priorities=True, waits_after_cancel=True)


class CountingMachine(TransportMachine):
    """Compares what the embedded broker counts with the rows that it has, too."""

    @invariant()
    def rows_are_counted(self) -> None:
        rows = self.publisher.connection.connection.broker.database.rows(
            """SELECT q.name, d.ready, d.leased,
                (SELECT count(*) FROM broker_messages WHERE queue = q.id AND owner IS NULL),
                (SELECT count(*) FROM broker_messages WHERE queue = q.id AND owner IS NOT NULL)
                FROM broker_queues q JOIN broker_depths d ON d.queue = q.id"""
        )
        counts = {name: counted for name, *counted in rows}
        for queue, name in self.names.items():
            held = sum(len(holder.held) for holder in self.holders if holder.queue == queue)
            assert counts[name] == [len(self.ready[queue]), held] * 2


class TestMemory(TransportConformance):
    features = replace(EMBEDDED, shared=False)
    machine = CountingMachine
    histories: ClassVar[tuple[int, int]] = (40, 40)

    @pytest.fixture
    def broker_url(self) -> Iterator[str]:
        name = str(uuid4())
        yield f"memory://{name}"
        forget(name)


class TestSqlite(TransportConformance):
    features = EMBEDDED
    machine = CountingMachine
    histories: ClassVar[tuple[int, int]] = (12, 40)

    @pytest.fixture
    def broker_url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path}/broker.db"


class TestRabbitMQ(TransportConformance):
    """The reference: as the runtime declares its queues."""

    features = Features(
        lag=0.1,
        keeps_places=False,
        queue={"x-queue-type": "quorum", "x-delivery-limit": 1_000_000},
        retry_queue={"x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish"},
    )
    histories: ClassVar[tuple[int, int]] = (6, 25)

    @pytest.fixture
    def broker_url(self, amqp_url: str) -> str:
        return amqp_url


@pytest.mark.long
class TestRabbitMQClassic(TransportConformance):
    features = Features(lag=0.1, priorities=True)
    histories: ClassVar[tuple[int, int]] = (20, 40)

    @pytest.fixture
    def broker_url(self, amqp_url: str) -> str:
        return amqp_url
