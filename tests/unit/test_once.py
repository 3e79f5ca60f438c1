"""Context.once is for one transaction of one database, once for a message: else it is told."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from worker import App, Context, Event, RetryPolicy
from worker.testing import TestWorker, duplicate_everything


class Order(Event, name="order", key="customer"):
    """Of some lines."""

    customer: str


Handle = Callable[[Order, Context], None]


class Books:
    """Databases with a table of lines."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self, name: str = "books") -> sqlite3.Connection:
        """Return a connection."""
        db = sqlite3.connect(self._folder / f"{name}.db", isolation_level=None)
        db.execute("CREATE TABLE IF NOT EXISTS line (number INTEGER)")
        return db

    def lines(self, name: str = "books") -> list[int]:
        """Return what is there."""
        with closing(self.open(name)) as db:
            return [number for (number,) in db.execute("SELECT number FROM line ORDER BY number")]


@pytest.fixture
def books(tmp_path: Path) -> Books:
    return Books(tmp_path)


def reasons(handle: Handle) -> list[str]:
    """Return why the one order was set aside, if it was."""
    app = App("shop")
    app.on(Order, name="book")(handle)
    with TestWorker(app) as worker:
        worker.publish(Order(customer="c1"))
        worker.run()
        return [letter.reason for letter in worker.dead_letters]


def test_twice_in_one_transaction_is_rejected_and_rolled_back(books: Books) -> None:
    def handle(_: Order, context: Context) -> None:
        with closing(books.open()) as db:
            for number in range(2):
                context.once(db)
                db.execute("INSERT INTO line VALUES (?)", (number,))
            db.commit()

    (reason,) = reasons(handle)
    assert "called a second time" in reason
    assert books.lines() == []


def test_a_transaction_for_each_line_is_rejected_at_the_second(books: Books) -> None:
    def handle(_: Order, context: Context) -> None:
        for number in range(2):
            with closing(books.open()) as db:
                context.once(db)
                db.execute("INSERT INTO line VALUES (?)", (number,))
                db.commit()

    (reason,) = reasons(handle)
    assert "called a second time" in reason
    assert books.lines() == [0]


def test_so_are_two_databases(books: Books) -> None:
    def handle(_: Order, context: Context) -> None:
        for name in ("books", "stock"):
            with closing(books.open(name)) as db:
                context.once(db)
                db.execute("INSERT INTO line VALUES (1)")
                db.commit()

    (reason,) = reasons(handle)
    assert "called a second time" in reason
    assert books.lines("stock") == []


def test_a_transaction_that_was_rolled_back_may_be_tried_again(books: Books) -> None:
    def handle(_: Order, context: Context) -> None:
        with closing(books.open()) as db:
            for number in range(2):
                context.once(db)
                db.execute("INSERT INTO line VALUES (?)", (number,))
                if number == 0:
                    db.rollback()
            db.commit()

    assert reasons(handle) == []
    assert books.lines() == [1]


def test_it_may_be_tried_again_on_a_new_connection(books: Books) -> None:
    def handle(_: Order, context: Context) -> None:
        for number in range(2):
            with closing(books.open()) as db:
                context.once(db)
                db.execute("INSERT INTO line VALUES (?)", (number,))
                if number == 0:
                    db.rollback()
                else:
                    db.commit()

    assert reasons(handle) == []
    assert books.lines() == [1]


def test_databases_in_memory_are_told_apart(books: Books) -> None:
    def handle(_: Order, context: Context) -> None:
        for _number in range(2):
            with closing(sqlite3.connect(":memory:")) as db:
                context.once(db)
                db.commit()

    (reason,) = reasons(handle)
    assert "called a second time" in reason


def test_a_handler_that_is_run_twice_has_its_effect_once(books: Books) -> None:
    app = App("shop")
    runs: list[str] = []

    class Booked(Event, name="booked", key="customer"):
        """What the handler publishes."""

        customer: str

    @app.on(Order, name="book")
    def book(order: Order, context: Context) -> None:
        runs.append(context.message_id)
        context.publish(Booked(customer=order.customer))
        with closing(books.open()) as db:
            context.once(db)
            db.execute("INSERT INTO line VALUES (1)")
            db.commit()

    app.use(duplicate_everything)
    with TestWorker(app) as worker:
        worker.publish(Order(customer="c1"))
        worker.run()
        assert worker.dead_letters == []
        assert {each.name for each in worker.published} == {"booked"}
        assert len({each.message_id for each in worker.published}) == 1
    assert len(runs) == 2
    assert books.lines() == [1]


def test_each_of_two_runs_has_to_commit(books: Books) -> None:
    app = App("shop")

    @app.on(Order, name="book", retry=RetryPolicy(attempts=1))
    def book(_: Order, context: Context) -> None:
        db = books.open()
        context.once(db)
        db.execute("INSERT INTO line VALUES (1)")

    app.use(duplicate_everything)
    with TestWorker(app) as worker:
        worker.publish(Order(customer="c1"))
        worker.run()
        (letter,) = worker.dead_letters
    assert "without a commit" in letter.reason
    assert books.lines() == []
