"""The inbox: an effect and the memory of its id are one, by each integration on each database."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import cast

import pytest
from django.db import Error
from sqlalchemy import Engine, insert, text
from sqlalchemy.exc import DBAPIError
from worker.contrib.sqlalchemy.tables import inbox_table

from shops import LINE, ONCE, Order, Shop, lines
from waiting import until
from worker import App, Context
from worker.testing import TestWorker

#: What a database refuses, as the integrations tell it.
Refused = (DBAPIError, Error)


#: How many sessions wait for a lock. SQLite does not tell.
_WAITING = {
    "postgresql": "SELECT count(*) FROM pg_locks WHERE NOT granted",
    "mysql": "SELECT variable_value + 0 FROM information_schema.global_status"
    " WHERE variable_name = 'INNODB_ROW_LOCK_CURRENT_WAITS'",
}

styles = pytest.mark.parametrize("style", ["book", "book_async"])


@styles
def test_an_effect_happens_once_though_the_dedup_store_forgot(shop: Shop, style: str) -> None:
    handle, order = getattr(shop, style), Order(text="one")
    for _ in range(3):
        assert shop.handled(handle, order) == []
    assert shop.handled(handle, Order(text="two")) == []
    assert shop.lines() == ["one", "two"]


@styles
def test_a_handler_that_runs_twice_in_a_row_has_one_effect(shop: Shop, style: str) -> None:
    assert shop.handled(getattr(shop, style), Order(text="one"), twice=True) == []
    assert shop.lines() == ["one"]


def test_it_is_given_the_context_and_not_the_event(shop: Shop) -> None:
    def book(order: Order, _context: Context) -> None:
        shop.book(order, cast("Context", order))

    async def book_async(order: Order, _context: Context) -> None:
        await shop.book_async(order, cast("Context", order))

    for handle in (book, book_async):
        (reason,) = shop.handled(handle, Order(text="one"))
        assert "inbox.transaction is given the context" in reason
        assert reason.endswith("this is a Order")
    assert shop.lines() == []


@styles
def test_without_its_table_it_tells_how_to_make_it(
    shop: Shop, style: str, integration: str
) -> None:
    inbox_table.drop(shop.desk.engine)

    (reason,) = shop.handled(getattr(shop, style), Order(text="one"))

    assert "has no table qworker_inbox" in reason
    hints = {"sqlalchemy": "create_tables(engine)", "django": "'manage.py migrate qworker'"}
    assert hints[integration] in reason
    assert shop.lines() == []


def test_each_handler_has_its_own_memory(shop: Shop) -> None:
    app = App("shop")
    app.on(Order, name="book")(shop.book)
    app.on(Order, name="copy")(shop.book)
    with TestWorker(app) as worker:
        worker.publish(Order(text="one"))
        worker.run()
    assert shop.lines() == ["one", "one"]


def test_an_error_leaves_neither_effect_nor_memory(shop: Shop) -> None:
    def handle(order: Order, context: Context) -> None:
        with shop.desk.effect(context) as deal:
            deal.execute(LINE, text=order.text)
            raise ValueError("no")

    order = Order(text="one")
    (reason,) = shop.handled(handle, order)
    assert "ValueError: no" in reason
    assert (shop.lines(), shop.remembered()) == ([], [])
    assert shop.handled(shop.book, order) == []
    assert shop.lines() == ["one"]


def test_an_async_error_leaves_neither_effect_nor_memory(shop: Shop) -> None:
    async def handle(order: Order, context: Context) -> None:
        await shop.desk.effect_async(context, LINE, "INSERT INTO nowhere VALUES (1)", text="one")

    (reason,) = shop.handled(handle, Order(text="one"))
    assert "nowhere" in reason
    assert (shop.lines(), shop.remembered()) == ([], [])


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_an_error_that_is_passed_over_is_no_success_without_its_effect(shop: Shop) -> None:
    """PostgreSQL, asked to commit after it, rolls back and raises nothing."""

    def handle(order: Order, context: Context) -> None:
        with shop.desk.effect(context) as deal:
            deal.execute(LINE, text=order.text)
            with pytest.raises(Refused, match="nowhere"):
                deal.execute("SELECT * FROM nowhere")

    (reason,) = shop.handled(handle, Order(text="one"))
    assert "current transaction is aborted" in reason
    assert (shop.lines(), shop.remembered()) == ([], [])


def test_a_transaction_that_is_undone_behind_it_is_no_success(shop: Shop) -> None:
    def handle(order: Order, context: Context) -> None:
        with shop.desk.effect(context) as deal:
            deal.execute(LINE, text=order.text)
            deal.execute("ROLLBACK")

    (reason,) = shop.handled(handle, Order(text="one"))
    assert "ended within its block without a commit" in reason
    assert (shop.lines(), shop.remembered()) == ([], [])


def test_nor_is_it_where_another_run_has_had_the_effect_meanwhile(shop: Shop) -> None:
    order = Order(text="one")

    def handle(order: Order, context: Context) -> None:
        with shop.desk.effect(context) as deal:
            deal.execute("ROLLBACK")
            with ThreadPoolExecutor(1) as other:  # of a process that waited for this one
                assert other.submit(shop.handled, shop.book, order).result(30) == []

    (reason,) = shop.handled(handle, order)
    assert "ended within its block without a commit" in reason
    assert shop.lines() == ["one"]


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_block_may_set_what_its_statements_see(shop: Shop) -> None:
    def handle(order: Order, context: Context) -> None:
        with shop.desk.effect(context) as deal:
            deal.execute(LINE, text=order.text)
            deal.execute("SET LOCAL search_path = pg_catalog")

    assert shop.handled(handle, Order(text="one")) == []
    assert shop.lines() == ["one"]


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
def test_a_deadlock_that_is_passed_over_leaves_no_part_of_an_effect(shop: Shop) -> None:
    """Who is chosen to end it has lost its whole transaction, and what comes next is another."""
    engine, change = shop.desk.engine, "UPDATE line SET text = 'y' WHERE number = :number"
    with engine.begin() as connection:
        connection.execute(insert(lines), [{"text": "x"} for _ in range(100)])

    def handle(order: Order, context: Context) -> None:
        with ThreadPoolExecutor(1) as threads, engine.connect() as other:
            other.execute(text("UPDATE line SET text = 'z' WHERE number BETWEEN 2 AND 99"))
            with shop.desk.effect(context) as deal:
                deal.execute(change, number=1)
                waits = threads.submit(other.execute, text(change), {"number": 1})
                until(lambda: waiting(shop), message="the other one waits for this one")
                with pytest.raises(Refused, match="Deadlock"):
                    deal.execute(change, number=2)
                waits.result(30)
                deal.execute(LINE, text=order.text)

    (reason,) = shop.handled(handle, Order(text="one"))
    assert "ended within its block without a commit" in reason
    assert (set(shop.lines()), shop.remembered()) == ({"x"}, [])


def test_a_second_transaction_for_a_message_is_rejected(shop: Shop) -> None:
    def handle(order: Order, context: Context) -> None:
        for _ in range(2):
            shop.book(order, context)

    (reason,) = shop.handled(handle, Order(text="one"))
    assert "inbox.transaction was called a second time" in reason
    assert shop.lines() == ["one"]


def test_one_within_the_other_is_rejected_and_waits_for_nobody(shop: Shop) -> None:
    def handle(order: Order, context: Context) -> None:
        with shop.desk.effect(context):
            shop.book(order, context)

    (reason,) = shop.handled(handle, Order(text="one"))
    assert "inbox.transaction was called a second time" in reason
    assert shop.lines() == []


def test_one_that_was_rolled_back_may_be_tried_again(shop: Shop) -> None:
    def handle(order: Order, context: Context) -> None:
        try:
            with shop.desk.effect(context) as deal:
                deal.execute("SELECT * FROM nowhere")
        except Refused:
            shop.book(order, context)

    assert shop.handled(handle, Order(text="one")) == []
    assert shop.lines() == ["one"]


def test_a_savepoint_that_fails_costs_its_own_part_alone(shop: Shop) -> None:
    def handle(order: Order, context: Context) -> None:
        numbered = "INSERT INTO line (number, text) VALUES (:number, :text)"
        with shop.desk.effect(context) as deal:
            deal.execute(numbered, number=1, text=order.text)
            with suppress(*Refused), deal.savepoint():
                deal.execute(numbered, number=1, text="again")
            deal.execute(numbered, number=2, text="instead")

    assert shop.handled(handle, Order(text="one")) == []
    assert shop.lines() == ["one", "instead"]


def test_a_relay_is_refused(shop: Shop) -> None:
    app = App("shop")

    @app.relay(Order, to="order.copied", retry=ONCE)
    def copy(order: Order, context: Context) -> None:
        shop.book(order, context)

    with TestWorker(app) as worker:
        worker.publish(Order(text="one"))
        worker.run()
        (letter,) = worker.dead_letters
    assert "is a relay and calls inbox.transaction" in letter.reason
    assert shop.lines() == []


@pytest.mark.parametrize("odd", ["a ", "A", "é", "x" * 250])
def test_any_id_is_remembered(shop: Shop, odd: str) -> None:
    for id_ in (odd, odd, "a"):
        assert shop.handled(shop.book, Order(event_id=id_, text=id_)) == []
    assert shop.lines() == [odd, "a"]


def test_who_meets_a_transaction_that_is_open_waits_for_its_end(shop: Shop) -> None:
    """A second run beside the first: of a process that was paused for longer than its claim."""
    inside, go_on = threading.Event(), threading.Event()
    order = Order(text="one")

    def slow(order: Order, context: Context) -> None:
        with shop.desk.effect(context) as deal:
            deal.execute(LINE, text=order.text)
            inside.set()
            assert go_on.wait(30)

    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(shop.handled, slow, order)
        assert inside.wait(30)
        second = threads.submit(shop.handled, shop.book, order)
        if shop.desk.engine.dialect.name in _WAITING:
            until(lambda: waiting(shop), message="the second one waits for the row of the first")
        go_on.set()
        assert (first.result(30), second.result(30)) == ([], [])
    assert shop.lines() == ["one"]


def waiting(shop: Shop) -> bool:
    """Tell whether a session waits for a lock."""
    with shop.desk.engine.connect() as connection:
        return bool(connection.scalar(text(_WAITING[connection.dialect.name])))


def test_old_ids_are_forgotten_in_batches(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, engine: Engine, integration: str
) -> None:
    monkeypatch.setattr(f"worker.contrib.{integration}.inbox._BATCH", 10)
    rows = [{"handler": "shop.book", "message_id": str(n), "at": float(n)} for n in range(25)]
    with engine.begin() as connection:
        connection.execute(insert(inbox_table), rows)
    assert shop.handled(shop.book, Order(text="new")) == []

    assert shop.desk.purge(older_than=3600) == 25
    assert shop.desk.purge(older_than=3600) == 0
    assert len(shop.remembered()) == 1
    assert shop.desk.purge(older_than=0) == 1


@pytest.mark.parametrize("age", [-5 * 86400.0, float("nan")])
def test_no_id_is_forgotten_by_an_age_that_is_none(shop: Shop, age: float) -> None:
    assert shop.handled(shop.book, Order(text="one")) == []
    with pytest.raises(ValueError, match="zero or more"):
        shop.desk.purge(older_than=age)
    assert len(shop.remembered()) == 1
