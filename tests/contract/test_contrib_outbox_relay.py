"""The relay in trouble: a lease that goes and comes back, and transactions that do not end."""

from __future__ import annotations

import logging

import pytest
from sqlalchemy import insert, text, update
from worker.contrib.outbox import columns_of
from worker.contrib.sqlalchemy.tables import outbox_table

from outboxes import Desk, Noted, by_key, sent
from worker.testing import TestWorker

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
    with desk.engine.begin() as connection:
        connection.execute(update(outbox_table).values(transaction_id=10**15))
    desk.leave(Noted(key="a", number=1))
    assert desk.relay().turn().sent == 2
    assert sent(worker) == [("a", 0), ("a", 1)]


@on_postgresql
def test_a_transaction_that_does_not_end_is_told_once_and_so_is_its_end(
    desk: Desk, worker: TestWorker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "worker.outbox")
    now = 0.0
    relay = desk.relay(clock=lambda: now)
    with desk.engine.connect() as slow, desk.engine.connect() as looking:
        number = slow.scalar(text("SELECT pg_current_xact_id()::text::bigint"))
        row = columns_of("desk", desk.app.encode(Noted(key="a", number=0)))
        slow.execute(insert(outbox_table), [row])
        desk.leave(Noted(key="a", number=1), Noted(key="b", number=0))
        while now < 9:
            assert relay.turn().held == 2
            now += 1
        assert caplog.messages == []
        while now < 60:
            relay.turn()
            now += 1
        (told,) = caplog.messages
        assert told.startswith(f"2 keys of the outbox wait for transaction {number} ")
        query = told[told.index("SELECT") : told.index(", or where")]
        assert len(looking.execute(text(query)).all()) == 1, "the log says how to find it"
        slow.rollback()
    assert relay.turn().sent == 2
    assert caplog.messages[1:] == [f"transaction {number} holds back nothing any more"]
