"""Context.once is for one transaction of one database, once for a message: else it is told."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from worker import App, Context, Event
from worker.testing import TestWorker


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
