"""Context.once is for one transaction of one database, once for a message: else it is told."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from worker import AlreadyDone, App, Context, Event, RetryPolicy
from worker.inbox import record
from worker.testing import TestWorker, duplicate_everything


class Order(Event, name="order", key="customer"):
    """Of some lines."""

    customer: str


class Note(Event, name="note"):
    """What an order publishes."""

    text: str


Handle = Callable[[Order, Context], None]


class Books:
    """Databases with a table of lines."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def path(self) -> Path:
        """Where the first one is, with its table."""
        self.open().close()
        return self._folder / "books.db"

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


@pytest.mark.parametrize("goes_on", [False, True])
def test_a_transaction_that_was_rolled_back_is_no_success(books: Books, *, goes_on: bool) -> None:
    """By the handler, or by SQLite: what comes next is in another one, without the id."""

    def handle(_: Order, context: Context) -> None:
        with closing(books.open()) as db:
            context.once(db)
            db.rollback()
            if goes_on:
                db.execute("BEGIN")
                db.execute("INSERT INTO line VALUES (1)")
                db.commit()

    (reason,) = reasons(handle)
    assert "without a commit of the transaction of context.once" in reason


def test_nor_is_it_where_another_run_has_had_the_effect_meanwhile(books: Books) -> None:
    attempts: list[int] = []

    def handle(_: Order, context: Context) -> None:
        attempts.append(context.attempt)
        with closing(books.open()) as db, closing(books.open()) as of_another:
            context.once(db)
            db.rollback()
            record(of_another, context.handler, context.memory_id)
            of_another.execute("INSERT INTO line VALUES (1)")
            of_another.commit()

    assert reasons(handle) == []
    assert attempts == [1, 2], "the first one counts as failed"
    assert books.lines() == [1]


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


class Elsewhere:
    """A database that an integration knows: a dictionary with transactions."""

    def __init__(self) -> None:
        self.ids: set[str] = set()
        self.lines: list[int] = []

    @contextmanager
    def transaction(self, context: Context) -> Iterator[list[int]]:
        """Give the lines to be; they are there, with the id, once the block has ended."""
        lines: list[int] = []
        with context.one_effect("elsewhere.transaction"):
            if context.idempotency_key in self.ids:
                raise AlreadyDone(context.idempotency_key)
            yield lines
            self.ids.add(context.idempotency_key)
            self.lines += lines


def test_an_integration_has_one_transaction_for_a_message_too() -> None:
    database = Elsewhere()

    def handle(_: Order, context: Context) -> None:
        for number in range(2):
            with database.transaction(context) as lines:
                lines.append(number)

    (reason,) = reasons(handle)
    assert "elsewhere.transaction was called a second time" in reason
    assert database.lines == [0]


def test_none_of_its_transactions_is_within_another() -> None:
    database = Elsewhere()

    def handle(_: Order, context: Context) -> None:
        with database.transaction(context) as lines, database.transaction(context):
            lines.append(1)

    (reason,) = reasons(handle)
    assert "elsewhere.transaction was called a second time" in reason
    assert database.lines == []


def test_one_that_raised_may_be_tried_again() -> None:
    database = Elsewhere()

    def handle(_: Order, context: Context) -> None:
        for number in range(2):
            with suppress(ZeroDivisionError), database.transaction(context) as lines:
                lines.append(1 // number)

    assert reasons(handle) == []
    assert database.lines == [1]


def test_an_integration_and_once_are_two_transactions(books: Books) -> None:
    database = Elsewhere()

    def handle(_: Order, context: Context) -> None:
        with database.transaction(context), closing(books.open()) as db:
            context.once(db)

    (reason,) = reasons(handle)
    assert "context.once was called a second time" in reason
    assert database.lines == []


@pytest.mark.parametrize("is_behind", [False, True])
def test_what_is_published_in_or_behind_the_effect_is_refused(
    books: Books, *, is_behind: bool
) -> None:
    """A second run ends at the effect, and would not publish it."""
    database = Elsewhere()

    def handle(_: Order, context: Context) -> None:
        context.publish(Note(text="before it"))
        with database.transaction(context) as lines:
            lines.append(1)
            if not is_behind:
                context.publish(Note(text="in it"))
        context.publish(Note(text="behind it"))

    (reason,) = reasons(handle)
    assert "calls context.publish in, or behind, the transaction" in reason
    assert database.lines == ([1] if is_behind else [])

    def do_it_once(_: Order, context: Context) -> None:
        with closing(books.open()) as db:
            context.once(db)
            if is_behind:
                db.commit()
            context.publish(Note(text="too late"))

    (reason,) = reasons(do_it_once)
    assert "calls context.publish in, or behind, the transaction" in reason
    assert books.lines() == []


def test_what_knows_that_it_was_done_may_publish_behind_it() -> None:
    database, app = Elsewhere(), App("shop")
    lost = iter([True, False])

    @app.on(Order, retry=RetryPolicy(attempts=2))
    def book(_: Order, context: Context) -> None:
        try:
            with database.transaction(context) as lines:
                lines.append(1)
        except AlreadyDone:
            context.publish(Note(text="done"))
        if next(lost):
            raise RuntimeError("the process dies here")

    with TestWorker(app) as worker:
        worker.publish(Order(customer="c1"))
        worker.run()
        assert [letter.reason for letter in worker.dead_letters] == []
        assert [message.payload for message in worker.published if message.name == "note"] == [
            {"text": "done"}
        ]
    assert database.lines == [1]


def test_so_may_who_finds_it_done_by_once(books: Books) -> None:
    app, lost = App("shop"), iter([True, False])

    @app.on(Order, retry=RetryPolicy(attempts=2))
    def book(_: Order, context: Context) -> None:
        with closing(books.open()) as db:
            try:
                context.once(db)
                db.execute("INSERT INTO line VALUES (1)")
                db.commit()
            except AlreadyDone:
                context.publish(Note(text="done"))
            if next(lost):
                raise RuntimeError("the process dies here")

    with TestWorker(app) as worker:
        worker.publish(Order(customer="c1"))
        worker.run()
        assert [letter.reason for letter in worker.dead_letters] == []
        assert [message.name for message in worker.published].count("note") == 1
    assert books.lines() == [1]


def test_an_outbox_is_given_what_is_published_in_the_effect_and_not_behind_it() -> None:
    database, given = Elsewhere(), list[str]()

    def handle(_: Order, context: Context) -> None:
        with database.transaction(context) as lines:
            lines.append(1)
            given.append(context.encode(Note(text="in")).message_id)
        given.append(context.encode(Note(text="behind")).message_id)

    (reason,) = reasons(handle)
    assert "publish_on_commit behind the transaction that holds its effect" in reason
    assert len(given) == 1


@pytest.mark.parametrize("is_closed", [True, False])
def test_nor_behind_that_of_once(books: Books, *, is_closed: bool) -> None:
    given = list[str]()

    def handle(_: Order, context: Context) -> None:
        db = books.open()
        context.once(db)
        db.execute("INSERT INTO line VALUES (1)")
        given.append(context.encode(Note(text="in")).message_id)
        db.commit()
        if is_closed:
            db.close()
        with closing(db):
            given.append(context.encode(Note(text="behind")).message_id)

    (reason,) = reasons(handle)
    assert "publish_on_commit behind the transaction that holds its effect" in reason
    assert len(given) == 1


@pytest.mark.parametrize("is_new", [True, False])
def test_behind_a_rollback_it_may_be_published_and_tried_again(
    books: Books, *, is_new: bool
) -> None:
    app = App("shop")

    @app.on(Order, retry=RetryPolicy(attempts=1))
    def book(_: Order, context: Context) -> None:
        db = books.open()
        context.once(db)
        db.execute("INSERT INTO line VALUES (1)")
        db.rollback()
        if is_new:
            db.close()
            db = books.open()
        context.publish(Note(text="before"))
        context.once(db)
        db.execute("INSERT INTO line VALUES (2)")
        db.commit()
        db.close()

    with TestWorker(app) as worker:
        worker.publish(Order(customer="c1"))
        worker.run()
        assert [letter.reason for letter in worker.dead_letters] == []
        assert [message.name for message in worker.published].count("note") == 1
    assert books.lines() == [2]


def test_a_handler_that_does_it_once_is_idempotent(books: Books) -> None:
    app, database = App("shop"), Elsewhere()

    @app.on(Order)
    def book(_: Order, context: Context) -> None:
        with closing(books.open()) as db:
            context.once(db)
            db.execute("INSERT INTO line VALUES (1)")
            db.commit()

    @app.on(Order)
    def keep(_: Order, context: Context) -> None:
        with database.transaction(context) as lines:
            lines.append(1)

    app.use(duplicate_everything)
    with TestWorker(app) as worker:
        worker.publish(Order(customer="c1"))
        worker.run()
        assert worker.dead_letters == []
    assert (books.lines(), database.lines) == ([1], [1])


def test_a_child_for_an_outbox_has_an_id_of_its_own_and_the_same_in_each_run() -> None:
    app = App("shop")
    runs: list[list[str]] = []

    @app.on(Order)
    def ship(event: Order, context: Context) -> None:
        ids = [context.publish(Note(text="1")), context.encode(Note(text="2")).message_id]
        runs.append([*ids, context.publish(Note(text="3"))])

    app.use(duplicate_everything)
    with TestWorker(app) as worker:
        worker.publish(Order(customer="c1"))
        worker.run()
    first, second = runs
    assert first == second
    assert len({*first}) == 3


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


def test_a_handler_that_is_run_twice_publishes_the_same_and_has_its_effect_once(
    books: Books,
) -> None:
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


class _Failing:
    """A handler that keeps its connection, and fails at first in the midst of its transaction."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self.attempts = 0

    def __call__(self, _: Order, context: Context) -> None:
        context.once(self._db)
        self._db.execute("INSERT INTO line VALUES (?)", (context.attempt,))
        self.attempts += 1
        if self.attempts == 1:
            raise ValueError("not yet")
        self._db.commit()


def test_what_a_failed_run_left_open_is_rolled_back(books: Books) -> None:
    app = App("shop")
    with closing(sqlite3.connect(books.path, check_same_thread=False)) as db:
        failing = _Failing(db)

        @app.on(Order, retry=RetryPolicy(attempts=2, wait="fixed", first_wait=0.0))
        def book(order: Order, context: Context) -> None:
            failing(order, context)

        with TestWorker(app) as worker:
            worker.publish(Order(customer="c1"))
            worker.run()
            assert worker.dead_letters == []
        assert failing.attempts == 2
    assert books.lines() == [2]


def test_a_connection_that_is_closed_without_a_commit_is_told(books: Books) -> None:
    app = App("shop")

    @app.on(Order, retry=RetryPolicy(attempts=1))
    def book(_: Order, context: Context) -> None:
        with closing(books.open()) as db:
            context.once(db)
            db.execute("INSERT INTO line VALUES (1)")

    with TestWorker(app) as worker:
        worker.publish(Order(customer="c1"))
        worker.run()
        (letter,) = worker.dead_letters
    assert "without a commit" in letter.reason
    assert books.lines() == []


def test_catching_every_exception_does_not_catch_that_it_is_done(books: Books) -> None:
    app = App("shop")

    @app.on(Order)
    def book(_: Order, context: Context) -> None:
        with closing(books.open()) as db:
            try:
                context.once(db)
            except Exception:
                context.logger.exception("it goes on")
            db.execute("INSERT INTO line VALUES (1)")
            db.commit()

    app.use(duplicate_everything)
    with TestWorker(app) as worker:
        worker.publish(Order(customer="c1"))
        worker.run()
    assert books.lines() == [1]
