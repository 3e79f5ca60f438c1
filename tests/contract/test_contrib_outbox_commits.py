"""What a commit has to do with its events: they are all in it, behind what it waited for."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import Engine, create_engine, update
from sqlalchemy import event as events
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, object_session
from sqlalchemy.pool import NullPool
from worker.contrib.sqlalchemy import Outbox, create_tables

from databases import Database
from outboxes import AlchemyDesk, Noted, sent
from worker import App, ConfigurationError
from worker.testing import TestWorker


class Base(DeclarativeBase):
    """The tables of the application."""


class Thing(Base):
    """What an event may speak of."""

    __tablename__ = "thing"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    size: Mapped[int] = mapped_column(default=0)


@pytest.fixture
def engine(database: Database) -> Iterator[Engine]:
    options = {"connect_args": {"timeout": 0.1}} if database.kind == "sqlite" else {}
    engine = create_engine(database.url, **options)
    Base.metadata.create_all(engine)
    create_tables(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def desk(engine: Engine) -> AlchemyDesk:
    return AlchemyDesk(App("desk"), engine)


on_sqlite, on_postgresql = (
    pytest.mark.parametrize("database", [kind], indirect=True) for kind in ("sqlite", "postgresql")
)


@contextmanager
def at_each(moment: str, do: Callable[[Session], object]) -> Iterator[None]:
    """Call ``do`` at that moment of each Thing that is flushed."""

    def listener(_mapper: object, _connection: object, thing: Thing) -> None:
        session = object_session(thing)
        assert session is not None
        do(session)

    events.listen(Thing, moment, listener)
    try:
        yield
    finally:
        events.remove(Thing, moment, listener)


moments = pytest.mark.parametrize("moment", ["before_insert", "after_insert"])


@moments
@pytest.mark.parametrize("flushed", ["before the commit", "in the commit"])
@pytest.mark.parametrize("is_first", [True, False])
def test_what_a_flush_publishes_leaves_with_the_commit(
    desk: AlchemyDesk, worker: TestWorker, moment: str, flushed: str, *, is_first: bool
) -> None:
    def publish(session: Session) -> None:
        desk.outbox.publish_on_commit(session, Noted(key="a", number=1))

    with at_each(moment, publish), desk.sessions.begin() as session:
        if not is_first:
            desk.outbox.publish_on_commit(session, Noted(key="a", number=0))
        session.add(Thing(id=1))
        if flushed == "before the commit":
            session.flush()
        assert desk.outbox.flush()
        assert sent(worker) == []
    assert desk.outbox.flush()
    assert sent(worker) == ([("a", 1)] if is_first else [("a", 0), ("a", 1)])


@moments
def test_what_a_flush_publishes_goes_with_its_savepoint(
    desk: AlchemyDesk, worker: TestWorker, moment: str
) -> None:
    numbers = iter([-1, 0, 1])

    def publish(session: Session) -> None:
        desk.outbox.publish_on_commit(session, Noted(key="a", number=next(numbers)))

    with at_each(moment, publish), desk.sessions.begin() as session:
        undone = session.begin_nested()
        session.add(Thing(id=1))
        session.flush()
        undone.rollback()
        with session.begin_nested():
            session.add(Thing(id=2))
        session.add(Thing(id=3))
    assert desk.outbox.flush()
    assert sent(worker) == [("a", 0), ("a", 1)]


@moments
@on_postgresql
def test_what_a_flush_publishes_is_behind_all_that_its_transaction_came_after(
    desk: AlchemyDesk, worker: TestWorker, moment: str
) -> None:
    """And holds back nobody before the commit."""
    with desk.sessions.begin() as session:
        session.add(Thing(id=1))

    def publish(session: Session) -> None:
        desk.dying.publish_on_commit(session, Noted(key="a", number=1))

    def change(session: Session) -> None:
        session.execute(update(Thing).where(Thing.id == 1).values(size=Thing.size + 1))

    with at_each(moment, publish), desk.sessions.begin() as later:
        later.add(Thing(id=2))
        later.flush()
        with desk.sessions.begin() as earlier:
            change(earlier)
            desk.dying.publish_on_commit(earlier, Noted(key="a", number=0))
        passed = desk.relay().turn()
        assert (passed.sent, passed.held) == (1, 0)
        change(later)
    assert desk.relay().turn().sent == 1
    assert sent(worker) == [("a", 0), ("a", 1)]


@on_sqlite
def test_a_commit_that_is_tried_again_has_its_events(
    desk: AlchemyDesk, worker: TestWorker, database: Database
) -> None:
    """The rows could not be written, since somebody else was writing; the transaction is open."""
    other = sqlite3.connect(database.url.removeprefix("sqlite:///"), isolation_level=None)
    with desk.sessions() as session:
        desk.outbox.publish_on_commit(session, Noted(key="a", number=0))
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(OperationalError, match="locked"):
            session.commit()
        other.execute("ROLLBACK")
        session.commit()
    other.close()
    assert desk.outbox.flush()
    assert sent(worker) == [("a", 0)]
    assert desk.left() == 0


def test_an_engine_that_commits_each_statement_is_refused(desk: AlchemyDesk) -> None:
    loose = desk.engine.execution_options(isolation_level="AUTOCOMMIT")
    with Session(loose) as session:
        desk.dying.publish_on_commit(session, Noted(key="a", number=0))
        with pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
            session.commit()
    assert desk.left() == 0


@on_sqlite
class TestSavepointThatComesFirst:
    """SQLite's drivers begin no transaction for it."""

    def test_nobody_sees_it_before_the_commit(self, desk: AlchemyDesk, worker: TestWorker) -> None:
        with desk.sessions.begin() as session:
            with session.begin_nested():
                session.add(Thing(id=1))
                desk.outbox.publish_on_commit(session, Noted(key="a", number=0))
            with desk.sessions() as other:
                assert other.get(Thing, 1) is None
        assert desk.outbox.flush()
        assert sent(worker) == [("a", 0)]

    def test_it_is_rolled_back_with_its_transaction(self, desk: AlchemyDesk) -> None:
        with desk.sessions() as session:
            with session.begin_nested():
                session.add(Thing(id=1))
            session.rollback()
            assert session.get(Thing, 1) is None

    def test_and_by_asyncio(self, desk: AlchemyDesk, database: Database) -> None:
        async def roll_back() -> None:
            engine = create_async_engine(database.async_url, poolclass=NullPool)
            async with AsyncSession(engine) as session:
                async with session.begin_nested():
                    session.add(Thing(id=1))
                await session.rollback()

        asyncio.run(roll_back())
        with desk.sessions() as session:
            assert session.get(Thing, 1) is None


def test_an_engine_of_asyncio_is_refused_at_once(desk: AlchemyDesk, database: Database) -> None:
    """It can be that of sessions, but a thread of its own cannot send by it."""
    with pytest.raises(ConfigurationError, match="for asyncio"):
        Outbox(desk.app, create_async_engine(database.async_url))
