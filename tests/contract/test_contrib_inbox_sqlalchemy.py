"""The inbox on SQLAlchemy: what its sessions, its engines of asyncio and its metadata add."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, select, text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Session, scoped_session, sessionmaker
from sqlalchemy.pool import NullPool
from worker.contrib.sqlalchemy import AsyncInbox, Inbox, create_tables
from worker.contrib.sqlalchemy.tables import inbox_table

from databases import Database
from shops import LINE, Order, Shop
from worker import ConfigurationError, Context


@pytest.fixture
def integration() -> str:
    return "sqlalchemy"


def test_a_handler_that_goes_on_after_its_own_commit_is_rejected(
    shop: Shop, engine: Engine
) -> None:
    def handle(order: Order, context: Context) -> None:
        with Inbox(sessionmaker(engine)).transaction(context) as session:
            session.execute(text(LINE), {"text": "first"})
            session.commit()
            session.execute(text(LINE), {"text": "second"})

    (reason,) = shop.handled(handle, Order(text="one"))
    assert "ended within its block" in reason
    assert shop.lines() == ["first"]


@pytest.mark.parametrize(
    ("has_context", "says"),
    [(True, "behind the transaction that holds its effect"), (False, "put it into the block")],
)
def test_what_is_published_behind_the_block_is_rejected_and_not_lost_in_silence(
    shop: Shop, engine: Engine, says: str, *, has_context: bool
) -> None:
    """Nobody would commit that session again."""

    def handle(order: Order, context: Context) -> None:
        with Inbox(sessionmaker(engine)).transaction(context) as session:
            session.execute(text(LINE), {"text": order.text})
        shop.desk.outbox.publish_on_commit(session, order, context if has_context else None)

    (reason,) = shop.handled(handle, Order(text="one"))
    assert "publish_on_commit" in reason
    assert says in reason
    assert shop.lines() == ["one"]


def test_so_it_is_with_a_session_of_its_own(shop: Shop, engine: Engine) -> None:
    """Which somebody commits; but the next attempt would not come there."""

    def handle(order: Order, context: Context) -> None:
        with Inbox(sessionmaker(engine)).transaction(context) as session:
            session.execute(text(LINE), {"text": order.text})
        with sessionmaker(engine).begin() as session:
            shop.desk.outbox.publish_on_commit(session, order, context)

    (reason,) = shop.handled(handle, Order(text="one"))
    assert "behind the transaction that holds its effect" in reason
    assert shop.lines() == ["one"]
    assert shop.desk.left() == 0


def test_and_behind_the_block_of_a_coroutine(shop: Shop, database: Database) -> None:
    async def handle(order: Order, context: Context) -> None:
        engine = create_async_engine(database.async_url, poolclass=NullPool)
        async with AsyncInbox(async_sessionmaker(engine)).transaction(context) as session:
            await session.execute(text(LINE), {"text": order.text})
        shop.desk.outbox.publish_on_commit(session, order, context)

    (reason,) = shop.handled(handle, Order(text="one"))
    assert "behind the transaction that holds its effect" in reason


def test_a_session_that_is_not_the_inbox_s_alone_may_publish_later(
    shop: Shop, engine: Engine
) -> None:
    """A registry gives the same one again."""
    registry = scoped_session(sessionmaker(engine))

    def handle(order: Order, context: Context) -> None:
        with Inbox(registry).transaction(context) as session:
            session.execute(text(LINE), {"text": order.text})
        shop.desk.dying.publish_on_commit(registry, order)
        registry.commit()
        registry.remove()

    assert shop.handled(handle, Order(text="one")) == []
    assert shop.desk.left() == 1


def test_what_makes_no_sessions_is_refused_at_once(database: Database, engine: Engine) -> None:
    loop_engine = create_async_engine(database.async_url, poolclass=NullPool)
    of_loops = async_sessionmaker(loop_engine)
    wrong: Any
    for wrong in (engine, database.url, Session(engine), of_loops, None):
        with pytest.raises(ConfigurationError, match=r"Inbox\(sessionmaker\(engine\)\)"):
            Inbox(wrong)
    for wrong in (loop_engine, sessionmaker(engine), scoped_session(sessionmaker(engine))):
        with pytest.raises(ConfigurationError, match=r"AsyncInbox\(async_sessionmaker\(engine\)\)"):
            AsyncInbox(wrong)
    older: Any = sessionmaker  # as SQLAlchemy 1.4 had it, and 2 takes it; its types do not
    AsyncInbox(older(loop_engine, class_=AsyncSession))
    Inbox(lambda: Session(engine))


def test_and_by_asyncio(shop: Shop, database: Database) -> None:
    async def purge(older_than: float) -> int:
        engine = create_async_engine(database.async_url, poolclass=NullPool)
        removed: int = await AsyncInbox(async_sessionmaker(engine)).purge(older_than)
        return removed

    assert shop.handled(shop.book, Order(text="one")) == []
    with pytest.raises(ValueError, match="zero or more"):
        asyncio.run(purge(-1))
    assert asyncio.run(purge(0)) == 1


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
