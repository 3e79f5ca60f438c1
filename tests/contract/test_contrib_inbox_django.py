"""The inbox on Django: what its blocks, its connections and its coroutines add."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import DatabaseError, connections, transaction
from sqlalchemy import Engine, text
from sqlalchemy.orm import sessionmaker
from worker.contrib.django import Inbox, fresh_connections
from worker.contrib.django.models import InboxEntry
from worker.contrib.sqlalchemy import Inbox as AlchemyInbox
from worker.contrib.sqlalchemy import create_tables, metadata

from databases import Database
from django_settings import configuration
from djangos import pointed_at
from shops import LINE, ONCE, Order, Shop
from worker import App, Context
from worker.testing import TestWorker

Block = Callable[[], object]
on_postgresql = pytest.mark.parametrize("database", ["postgresql"], indirect=True)


@pytest.fixture
def integration() -> str:
    return "django"


def write(line: str) -> None:
    """Have an effect, in whatever transaction is open."""
    with connections["default"].cursor() as cursor:
        cursor.execute("INSERT INTO line (text) VALUES (%s)", [line])


def refused(shop: Shop, block: Callable[[Context], object]) -> str:
    """Handle an order; return why it is set aside, having had no effect."""
    (reason,) = shop.handled(lambda order, context: block(context), Order(text="one"))
    assert (shop.lines(), shop.remembered()) == ([], [])
    assert shop.handled(shop.book, Order(text="two")) == [], "the next one finds all in order"
    return reason


def test_within_another_transaction_it_is_refused(shop: Shop) -> None:
    """Whose end would be later, and may be none."""

    def handle(context: Context) -> None:
        with transaction.atomic(), Inbox().transaction(context):
            write("one")

    assert "durable atomic block cannot be nested" in refused(shop, handle)


def in_inbox(block: Block) -> Callable[[Context], None]:
    def handle(context: Context) -> None:
        with Inbox().transaction(context):
            write("one")
            block()

    return handle


def catch_an_error() -> None:
    with suppress(DatabaseError):
        InboxEntry.objects.create(id=1, handler="a", message_id="a", at=None)


@pytest.mark.parametrize("block", [catch_an_error, lambda: transaction.set_rollback(True)])
def test_one_that_can_only_be_rolled_back_is_no_success(shop: Shop, block: Block) -> None:
    """Django would roll it back at the end of the block, and say nothing."""
    assert "has to be rolled back" in refused(shop, in_inbox(block))


def test_one_whose_connection_was_closed_is_no_success(shop: Shop) -> None:
    told = refused(shop, in_inbox(connections["default"].close))
    assert "the connection was closed within inbox.transaction" in told


@pytest.mark.parametrize("end", [transaction.commit, transaction.rollback])
def test_it_cannot_be_ended_within_its_block(shop: Shop, end: Block) -> None:
    assert "TransactionManagementError" in refused(shop, in_inbox(end))


def test_where_the_end_of_a_block_commits_nothing_it_is_refused(
    shop: Shop, database: Database
) -> None:
    manual = {**configuration(database.url), "AUTOCOMMIT": False}
    with pointed_at(database, default=manual):
        (reason,) = shop.handled(shop.book, Order(text="one"))
    assert "has autocommit off" in reason
    assert shop.lines() == []


def test_another_database_is_refused(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(type(connections["default"]), "vendor", "oracle")
        (reason,) = shop.handled(shop.book, Order(text="one"))
    assert "how to insert a row once in oracle" in reason


def test_a_coroutine_is_told_that_it_has_no_transactions(shop: Shop) -> None:
    async def handle(order: Order, context: Context) -> None:
        with Inbox().transaction(context):
            write(order.text)

    (reason,) = shop.handled(handle, Order(text="one"))
    assert "SynchronousOnlyOperation" in reason
    assert shop.lines() == []


def test_what_runs_for_a_coroutine_gets_and_gives(shop: Shop) -> None:
    got: list[Any] = []

    async def handle(order: Order, context: Context) -> None:
        def effect(line: str, *, mark: str) -> str:
            write(line + mark)
            return line

        got.append(await Inbox().run(context, effect, order.text, mark="!"))

    assert shop.handled(handle, Order(text="one")) == []
    assert (got, shop.lines()) == (["one"], ["one!"])


class TestConnections:
    """A database that has closed a connection meanwhile; those of PostgreSQL can be."""

    @pytest.fixture
    def kept(self, database: Database) -> dict[str, Any]:
        """Settings by which a thread keeps its connection, and looks whether it is still good."""
        facts = {"CONN_MAX_AGE": None, "CONN_HEALTH_CHECKS": True}
        return {**configuration(database.url), **facts}

    def end(self, engine: Engine) -> None:
        """End every other session, as a server does that is started again."""
        query = (
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE pid <> pg_backend_pid() AND datname = current_database()"
        )
        with engine.connect() as connection:
            connection.execute(text(query))

    def test_by_default_none_is_kept(self, shop: Shop) -> None:
        assert shop.handled(shop.book, Order(text="one")) == []
        assert connections["default"].connection is None

    @on_postgresql
    def test_one_that_was_closed_is_opened_anew(
        self, shop: Shop, database: Database, kept: dict[str, Any], engine: Engine
    ) -> None:
        with pointed_at(database, default=kept):
            assert shop.handled(shop.book, Order(text="one")) == []
            assert connections["default"].connection is not None
            self.end(engine)
            assert shop.handled(shop.book, Order(text="two")) == []
        assert shop.lines() == ["one", "two"]

    @on_postgresql
    def test_nor_does_a_failure_stay_where_nobody_looks(
        self, shop: Shop, database: Database, kept: dict[str, Any], engine: Engine
    ) -> None:
        with pointed_at(database, default={**kept, "CONN_HEALTH_CHECKS": False}):
            assert shop.handled(shop.book, Order(text="one")) == []
            self.end(engine)
            (reason,) = shop.handled(shop.book, Order(text="two"))
            assert "OperationalError" in reason
            assert shop.handled(shop.book, Order(text="three")) == []
        assert shop.lines() == ["one", "three"]

    @on_postgresql
    @pytest.mark.parametrize("is_async", [False, True])
    def test_handlers_without_an_inbox_have_a_middleware(
        self,
        shop: Shop,
        database: Database,
        kept: dict[str, Any],
        engine: Engine,
        is_async: bool,
    ) -> None:
        app = App("shop")

        def plain(order: Order) -> None:
            write(order.text)

        async def coroutine(order: Order) -> None:
            await sync_to_async(write)(order.text)

        app.on(Order, name="book", retry=ONCE)(coroutine if is_async else plain)
        app.use(fresh_connections)
        with pointed_at(database, default=kept), TestWorker(app) as worker:
            # This thread, in which TestWorker runs coroutines too, has one open as well.
            connections["default"].ensure_connection()
            for line in ("one", "two"):
                worker.publish(Order(text=line))
                worker.run()
                self.end(engine)
            assert worker.dead_letters == []
        assert shop.lines() == ["one", "two"]


def test_the_other_integration_knows_what_this_one_has_done(shop: Shop, engine: Engine) -> None:
    def handle(order: Order, context: Context) -> None:
        with AlchemyInbox(sessionmaker(engine)).transaction(context) as session:
            session.execute(text(LINE), {"text": order.text})

    first, second = Order(text="one"), Order(text="two")
    for order, one, other in ((first, shop.book, handle), (second, handle, shop.book)):
        assert shop.handled(one, order) == []
        assert shop.handled(other, order) == []
    assert shop.lines() == ["one", "two"]


def test_and_the_tables_may_be_those_of_the_other_one(shop: Shop, engine: Engine) -> None:
    metadata.drop_all(engine)
    create_tables(engine)
    order = Order(text="one")
    for _ in range(2):
        assert shop.handled(shop.book, order) == []
    assert shop.lines() == ["one"]
    assert shop.desk.purge(older_than=0) == 1


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_an_inbox_of_plain_sqlite_may_use_the_table(shop: Shop, database: Database) -> None:
    def handle(order: Order, context: Context) -> None:
        with sqlite3.connect(connections["default"].settings_dict["NAME"]) as db:
            context.once(db)
            db.execute("INSERT INTO line (text) VALUES (?)", [order.text])

    order = Order(text="one")
    for each in (handle, handle, shop.book):
        assert shop.handled(each, order) == []
    assert shop.lines() == ["one"]


def test_ids_can_be_looked_at_by_a_model(shop: Shop) -> None:
    order = Order(text="one")
    assert shop.handled(shop.book, order) == []
    entry = InboxEntry.objects.get()
    assert str(entry) == f"shop.book {order.event_id}"
    connections["default"].close()
