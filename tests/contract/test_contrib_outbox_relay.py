"""The relay in trouble: a lease that goes and comes back, and transactions that do not end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, create_engine, update
from worker.contrib.sqlalchemy import create_tables
from worker.contrib.sqlalchemy.tables import outbox_table

from databases import Database
from outboxes import Desk, Noted, by_key, sent
from worker import App
from worker.testing import TestWorker


@pytest.fixture
def engine(database: Database) -> Iterator[Engine]:
    engine = create_engine(database.url)
    create_tables(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def desk(engine: Engine) -> Desk:
    return Desk(App("desk"), engine)


@pytest.fixture
def worker(desk: Desk) -> Iterator[TestWorker]:
    with TestWorker(desk.app) as worker:
        yield worker


on_postgresql = pytest.mark.parametrize("database", ["postgresql"], indirect=True)


@pytest.mark.parametrize("lost_at", range(9))
def test_a_lease_that_is_back_within_a_pass_lets_no_row_overtake_another(
    desk: Desk, worker: TestWorker, lost_at: int
) -> None:
    """The lease store is slow: the trust in it ends at one look, and is renewed by the next."""
    desk.leave(*(Noted(key=key, number=n) for n in range(4) for key in "ab"))
    looks = 0

    def may_go_on() -> bool:
        nonlocal looks
        looks += 1
        return looks - 1 != lost_at

    relay = desk.relay(batch=4, may_go_on=may_go_on)
    passed = relay.turn()
    assert passed.is_cut == (looks > lost_at)
    relay.turn()
    assert by_key(sent(worker)) == {"a": [*range(4)], "b": [*range(4)]}
    assert desk.left() == 0


@on_postgresql
def test_rows_that_were_restored_from_another_cluster_wait_for_nobody(
    desk: Desk, worker: TestWorker
) -> None:
    """Their transactions have numbers that this one gives in months."""
    desk.leave(Noted(key="a", number=0))
    with desk.begin() as session:
        session.execute(update(outbox_table).values(transaction_id=10**15))
    desk.leave(Noted(key="a", number=1))
    assert desk.relay().turn().sent == 2
    assert sent(worker) == [("a", 0), ("a", 1)]
