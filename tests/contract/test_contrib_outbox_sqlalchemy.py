"""The outbox on SQLAlchemy: sessions, their savepoints, flushes and events, and its URLs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, func, select, text
from sqlalchemy import event as events
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, scoped_session
from sqlalchemy.pool import NullPool, StaticPool
from worker.contrib.outbox import OutboxUnavailable
from worker.contrib.sqlalchemy import Outbox, OutboxRows
from worker.contrib.sqlalchemy.tables import outbox_table

from databases import Database
from outboxes import AlchemyDesk, Loose, Noted, sent
from things import Base, Thing
from worker import ConfigurationError
from worker.testing import TestWorker


@pytest.fixture
def integration() -> str:
    return "sqlalchemy"


@pytest.fixture(autouse=True)
def _things(engine: Engine) -> None:
    Base.metadata.create_all(engine)


def test_nothing_leaves_of_a_transaction_that_is_rolled_back(
    desk: AlchemyDesk, worker: TestWorker
) -> None:
    session = desk.sessions()
    desk.outbox.publish_on_commit(session, Noted(key="a", number=0))
    session.rollback()
    desk.outbox.publish_on_commit(session, Noted(key="a", number=1))
    session.close()
    desk.outbox.publish_on_commit(session, Noted(key="a", number=2))
    session.commit()
    session.commit()
    session.close()
    assert desk.outbox.flush()
    assert sent(worker) == [("a", 2)]


def test_of_a_savepoint_only_what_is_kept_leaves(desk: AlchemyDesk, worker: TestWorker) -> None:
    with desk.sessions.begin() as session:
        desk.outbox.publish_on_commit(session, Noted(key="a", number=0))
        with session.begin_nested():
            desk.outbox.publish_on_commit(session, Noted(key="a", number=1))
            lost = session.begin_nested()
            desk.outbox.publish_on_commit(session, Noted(key="a", number=-1))
            lost.rollback()
        undone = session.begin_nested()
        with session.begin_nested():
            desk.outbox.publish_on_commit(session, Noted(key="a", number=-2))
        undone.rollback()
        desk.outbox.publish_on_commit(session, Noted(key="a", number=2))
    assert desk.outbox.flush()
    assert sent(worker) == [("a", 0), ("a", 1), ("a", 2)]


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_what_a_savepoint_has_published_that_was_left_open_leaves_with_the_commit(
    desk: AlchemyDesk, worker: TestWorker, depth: int
) -> None:
    """The commit of the block ends it, and has told of itself before."""
    with desk.sessions.begin() as session:
        desk.outbox.publish_on_commit(session, Noted(key="a", number=0))
        for number in range(1, depth + 1):
            session.begin_nested()
            session.add(Thing(id=number))
            desk.outbox.publish_on_commit(session, Noted(key="a", number=number))
    assert desk.outbox.flush()
    assert sent(worker) == [("a", number) for number in range(depth + 1)]


@pytest.mark.parametrize("moment", ["before_flush", "after_flush", "before_commit"])
def test_what_the_commit_is_the_first_to_publish_leaves_though_a_savepoint_was_left_open(
    desk: AlchemyDesk, worker: TestWorker, moment: str
) -> None:
    published: list[str] = []

    def publish(session: Session, *_: object) -> None:
        if not published:
            noted = Noted(key="a", number=1)
            published.append(desk.outbox.publish_on_commit(session, noted))

    with desk.sessions.begin() as session:
        events.listen(session, moment, publish)
        session.begin_nested()
        session.add(Thing(id=1))
    assert desk.outbox.flush()
    assert sent(worker) == [("a", 1)]


@pytest.mark.parametrize("is_kept", [False, True])
def test_a_savepoint_ends_what_is_left_open_in_it_and_is_no_commit(
    desk: AlchemyDesk, worker: TestWorker, *, is_kept: bool
) -> None:
    with desk.sessions.begin() as session:
        outer = session.begin_nested()
        between = session.begin_nested()
        session.begin_nested()
        desk.outbox.publish_on_commit(session, Noted(key="a", number=1))
        session.add(Thing(id=1))
        between.commit()
        rows = select(func.count()).select_from(outbox_table)
        assert session.scalar(rows) == 0, "they are written right before the commit"
        if is_kept:
            outer.commit()
        else:
            outer.rollback()
        desk.outbox.publish_on_commit(session, Noted(key="a", number=2))
        assert session.scalar(rows) == 0
    assert desk.outbox.flush()
    assert sent(worker) == ([("a", 1)] if is_kept else []) + [("a", 2)]


def test_a_savepoint_that_fails_as_it_is_flushed_takes_its_events_along(
    desk: AlchemyDesk, worker: TestWorker
) -> None:
    def publish_with_what_is_there_already(session: Session) -> None:
        with session.begin_nested():
            desk.outbox.publish_on_commit(session, Noted(key="a", number=-1))
            session.add(Thing(id=1))

    with desk.sessions.begin() as session:
        session.add(Thing(id=1))
    with desk.sessions.begin() as session:
        with pytest.raises(IntegrityError):
            publish_with_what_is_there_already(session)
        desk.outbox.publish_on_commit(session, Noted(key="a", number=0))
    assert desk.outbox.flush()
    assert sent(worker) == [("a", 0)]


@pytest.mark.parametrize(
    "moment", ["before_flush", "after_flush", "after_flush_postexec", "before_commit"]
)
def test_what_is_published_from_an_event_of_the_session_leaves_too(
    desk: AlchemyDesk, worker: TestWorker, moment: str
) -> None:
    """Also where that is the first that the session publishes, in the midst of its commit."""
    for is_first in (True, False):
        session = desk.sessions()

        def publish(session: Session, *_: object) -> None:
            desk.outbox.publish_on_commit(session, Noted(key="a", number=1))

        if not is_first:
            desk.outbox.publish_on_commit(session, Noted(key="a", number=0))
        events.listen(session, moment, publish)
        session.add(Thing(id=int(is_first)))
        session.commit()
        session.close()
    assert desk.outbox.flush()
    assert sent(worker) == [("a", 1), ("a", 0), ("a", 1)]


def test_a_registry_of_sessions_is_as_good_as_a_session(
    desk: AlchemyDesk, worker: TestWorker
) -> None:
    registry = scoped_session(desk.sessions)
    desk.outbox.publish_on_commit(registry, Noted(key="a", number=0))
    registry.commit()
    registry.remove()
    with desk.sessions.begin():
        pass
    assert desk.outbox.flush()
    assert sent(worker) == [("a", 0)]


def test_a_session_of_asyncio_publishes_by_the_same_call(
    desk: AlchemyDesk, database: Database, worker: TestWorker
) -> None:
    async def publish() -> None:
        engine = create_async_engine(database.async_url, poolclass=NullPool)
        async with async_sessionmaker(engine).begin() as session:
            desk.outbox.publish_on_commit(session, Noted(key="a", number=0))
            async with session.begin_nested():
                desk.outbox.publish_on_commit(session, Noted(key="a", number=1))

    asyncio.run(publish())
    assert desk.outbox.flush()
    assert sent(worker) == [("a", 0), ("a", 1)]


def test_a_database_without_the_table_is_told_so(database: Database, engine: Engine) -> None:
    outbox_table.drop(engine)
    rows = OutboxRows.open(database.url, "desk")
    with pytest.raises(ConfigurationError, match="has no table qworker_outbox"):
        rows.check()
    with pytest.raises(OutboxUnavailable, match="qworker_outbox"):
        rows.newest()
    rows.close()


def test_an_outbox_of_what_is_no_engine_is_refused_at_once(desk: AlchemyDesk) -> None:
    wrong: Any
    for wrong in (desk.sessions, "sqlite:///bank.db", desk.sessions()):
        with pytest.raises(ConfigurationError, match=r"Outbox\(app, engine\)"):
            Outbox(desk.app, wrong)


def test_arguments_in_another_order_are_told(desk: AlchemyDesk) -> None:
    wrong: Any = Noted(key="a", number=0)
    with pytest.raises(TypeError, match="its session comes first, and this is a Noted"):
        desk.outbox.publish_on_commit(wrong, wrong)
    with desk.sessions() as session, pytest.raises(TypeError, match="this is a Noted"):
        desk.outbox.publish_on_commit(session, wrong, wrong)
    wrong = desk.engine
    with pytest.raises(ConfigurationError, match="is given the app"):
        Outbox(wrong)


def test_nor_is_one_whose_connection_is_everybodys(desk: AlchemyDesk) -> None:
    """The thread that sends would commit what is open there."""
    engine = create_engine("sqlite://", poolclass=StaticPool)
    with pytest.raises(ConfigurationError, match="one connection for all threads"):
        Outbox(desk.app, engine)
    Outbox(desk.app)


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
def test_a_connection_that_is_lost_as_it_is_prepared_is_an_outage(
    database: Database, engine: Engine
) -> None:
    """The driver's error comes as it is there."""
    own = create_engine(database.url, pool_pre_ping=True)
    rows = OutboxRows(own, "desk")
    rows.newest()

    @events.listens_for(own, "checkout")  # behind the ping
    def lose(lost: Any, *_: object) -> None:
        with engine.connect() as connection:
            connection.execute(text(f"KILL {lost.thread_id()}"))

    with pytest.raises(OutboxUnavailable, match="the outbox at mysql"):
        rows.newest()
    events.remove(own, "checkout", lose)
    assert rows.newest() == 0
    own.dispose()


def test_publishing_begins_a_transaction_and_talks_to_nobody(desk: AlchemyDesk) -> None:
    session = Session()  # of no database
    desk.outbox.publish_on_commit(session, Loose(number=1))
    assert session.in_transaction()
    session.close()


def test_a_url_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    for url in ("nonsense", "oracle+nothing://x"):
        with pytest.raises(ConfigurationError, match="the database"):
            OutboxRows.open(url, "desk")
