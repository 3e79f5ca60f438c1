"""The inbox on SQLAlchemy: an effect and the memory of its id are one, on each database."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Engine, String, create_engine, insert, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from sqlalchemy.pool import NullPool
from worker.contrib.sqlalchemy import AsyncInbox, Inbox, create_tables
from worker.contrib.sqlalchemy.tables import inbox_table

from databases import Database
from waiting import until
from worker import App, Context, Event, RetryPolicy
from worker.testing import TestWorker, duplicate_everything


class Base(DeclarativeBase):
    """The tables of the application."""


class Line(Base):
    """An effect."""

    __tablename__ = "line"
    number: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(String(255))


class Order(Event, name="order", key="text"):
    text: str


_ONCE = RetryPolicy(attempts=1)


class Shop:
    """A service that writes a line for each order; what a test changes is the handler's block."""

    def __init__(self, database: Database, engine: Engine) -> None:
        self.sessions = sessionmaker(engine)
        self.inbox = Inbox(self.sessions)
        self._database = database

    def lines(self) -> list[str]:
        with self.sessions() as session:
            return [*session.scalars(select(Line.text).order_by(Line.number))]

    def remembered(self) -> list[str]:
        with self.sessions() as session:
            return [*session.scalars(select(inbox_table.c.message_id))]

    def handled(self, handle: Any, *orders: Order, twice: bool = False) -> list[str]:
        """Handle orders in a service that never heard of their ids; return why any is set aside."""
        app = App("shop")
        app.on(Order, name="book", retry=_ONCE)(handle)
        if twice:
            app.use(duplicate_everything)
        with TestWorker(app) as worker:
            for order in orders:
                worker.publish(order)
            worker.run()
            return [letter.reason for letter in worker.dead_letters]

    def book(self, order: Order, context: Context) -> None:
        with self.inbox.transaction(context) as session:
            session.add(Line(text=order.text))

    async def book_async(self, order: Order, context: Context) -> None:
        engine = create_async_engine(self._database.async_url, poolclass=NullPool)
        inbox = AsyncInbox(async_sessionmaker(engine))
        async with inbox.transaction(context) as session:
            session.add(Line(text=order.text))


@pytest.fixture
def engine(database: Database) -> Iterator[Engine]:
    engine = create_engine(database.url)
    Base.metadata.create_all(engine)
    create_tables(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def shop(database: Database, engine: Engine) -> Shop:
    return Shop(database, engine)


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
        with shop.inbox.transaction(context) as session:
            session.add(Line(text=order.text))
            session.flush()
            raise ValueError("no")

    order = Order(text="one")
    (reason,) = shop.handled(handle, order)
    assert "ValueError: no" in reason
    assert (shop.lines(), shop.remembered()) == ([], [])
    assert shop.handled(shop.book, order) == []
    assert shop.lines() == ["one"]


def test_an_async_error_leaves_neither_effect_nor_memory(shop: Shop, database: Database) -> None:
    async def handle(order: Order, context: Context) -> None:
        engine = create_async_engine(database.async_url, poolclass=NullPool)
        async with AsyncInbox(async_sessionmaker(engine)).transaction(context) as session:
            session.add(Line(text=order.text))
            await session.flush()
            raise ValueError("no")

    (reason,) = shop.handled(handle, Order(text="one"))
    assert "ValueError: no" in reason
    assert (shop.lines(), shop.remembered()) == ([], [])


def test_a_second_transaction_for_a_message_is_rejected(shop: Shop) -> None:
    def handle(order: Order, context: Context) -> None:
        for _ in range(2):
            shop.book(order, context)

    (reason,) = shop.handled(handle, Order(text="one"))
    assert "inbox.transaction was called a second time" in reason
    assert shop.lines() == ["one"]


def test_one_within_the_other_is_rejected_and_waits_for_nobody(shop: Shop) -> None:
    def handle(order: Order, context: Context) -> None:
        with shop.inbox.transaction(context):
            shop.book(order, context)

    (reason,) = shop.handled(handle, Order(text="one"))
    assert "inbox.transaction was called a second time" in reason
    assert shop.lines() == []


def test_one_that_was_rolled_back_may_be_tried_again(shop: Shop) -> None:
    def handle(order: Order, context: Context) -> None:
        try:
            with shop.inbox.transaction(context) as session:
                session.execute(text("SELECT * FROM nowhere"))
        except DBAPIError:
            shop.book(order, context)

    assert shop.handled(handle, Order(text="one")) == []
    assert shop.lines() == ["one"]


def test_a_handler_that_goes_on_after_its_own_commit_is_rejected(shop: Shop) -> None:
    def handle(order: Order, context: Context) -> None:
        with shop.inbox.transaction(context) as session:
            session.add(Line(text="first"))
            session.commit()
            session.add(Line(text="second"))

    (reason,) = shop.handled(handle, Order(text="one"))
    assert "ended within its block" in reason
    assert shop.lines() == ["first"]


def test_a_savepoint_that_fails_costs_its_own_part_alone(shop: Shop) -> None:
    def handle(order: Order, context: Context) -> None:
        with shop.inbox.transaction(context) as session:
            session.add(Line(number=1, text=order.text))
            session.flush()
            try:
                with session.begin_nested():
                    session.execute(insert(Line).values(number=1, text="again"))
            except IntegrityError:
                session.add(Line(number=2, text="instead"))

    assert shop.handled(handle, Order(text="one")) == []
    assert shop.lines() == ["one", "instead"]


def test_a_relay_is_refused(shop: Shop) -> None:
    app = App("shop")

    @app.relay(Order, to="order.copied", retry=_ONCE)
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
        with shop.inbox.transaction(context) as session:
            session.add(Line(text=order.text))
            inside.set()
            assert go_on.wait(30)

    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(shop.handled, slow, order)
        assert inside.wait(30)
        second = threads.submit(shop.handled, shop.book, order)
        if shop.sessions.kw["bind"].dialect.name == "postgresql":
            until(lambda: waiting(shop), message="the second one waits for the row of the first")
        go_on.set()
        assert (first.result(30), second.result(30)) == ([], [])
    assert shop.lines() == ["one"]


def waiting(shop: Shop) -> bool:
    """Tell whether a session waits for a lock."""
    with shop.sessions() as session:
        return bool(session.scalar(text("SELECT count(*) FROM pg_locks WHERE NOT granted")))


def test_old_ids_are_forgotten_in_batches(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, engine: Engine
) -> None:
    monkeypatch.setattr("worker.contrib.sqlalchemy.inbox._BATCH", 10)
    rows = [{"handler": "shop.book", "message_id": str(n), "at": float(n)} for n in range(25)]
    with engine.begin() as connection:
        connection.execute(insert(inbox_table), rows)
    assert shop.handled(shop.book, Order(text="new")) == []

    assert shop.inbox.purge(older_than=3600) == 25
    assert shop.inbox.purge(older_than=3600) == 0
    assert len(shop.remembered()) == 1
    assert shop.inbox.purge(older_than=-1) == 1


def test_and_by_asyncio(shop: Shop, database: Database) -> None:
    async def purge() -> int:
        engine = create_async_engine(database.async_url, poolclass=NullPool)
        removed: int = await AsyncInbox(async_sessionmaker(engine)).purge(older_than=-1)
        return removed

    assert shop.handled(shop.book, Order(text="one")) == []
    assert asyncio.run(purge()) == 1


def test_tables_can_be_made_by_an_async_engine(database: Database) -> None:
    async def make() -> list[str]:
        engine = create_async_engine(database.async_url, poolclass=NullPool)
        async with engine.begin() as connection:
            await connection.run_sync(create_tables)
            await connection.run_sync(create_tables)
        async with AsyncSession(engine) as session:
            return [*await session.scalars(select(inbox_table.c.message_id))]

    assert asyncio.run(make()) == []


def test_a_project_takes_the_tables_into_its_own_metadata(database: Database) -> None:
    class Mine(DeclarativeBase):
        pass

    inbox_table.to_metadata(Mine.metadata)
    engine = create_engine(database.url)
    Mine.metadata.create_all(engine)
    with Session(engine) as session:
        assert session.scalars(select(inbox_table.c.message_id)).all() == []
    engine.dispose()
