"""What a commit has to do with its events: they are all in it, behind what it waited for."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from sqlalchemy import Engine, create_engine, text, update
from sqlalchemy import event as events
from sqlalchemy.exc import OperationalError, PendingRollbackError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, object_session
from sqlalchemy.pool import NullPool
from worker.contrib.sqlalchemy import Outbox, create_tables

from databases import Database
from outboxes import AlchemyDesk, Noted, sent
from things import Base, Thing
from waiting import until
from worker import App, ConfigurationError
from worker.testing import TestWorker


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
def test_a_commit_that_fails_at_the_rows_has_to_be_rolled_back(
    desk: AlchemyDesk, worker: TestWorker, database: Database
) -> None:
    """The database may have undone the rest by then; a second try would have events alone."""
    other = sqlite3.connect(database.url.removeprefix("sqlite:///"), isolation_level=None)
    with desk.sessions() as session:
        desk.outbox.publish_on_commit(session, Noted(key="a", number=0))
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(OperationalError, match="locked"):
            session.commit()
        other.execute("ROLLBACK")
        with pytest.raises(PendingRollbackError):
            session.commit()
        session.rollback()
        session.commit()
        desk.outbox.publish_on_commit(session, Noted(key="a", number=1))
        session.commit()
    other.close()
    assert desk.outbox.flush()
    assert sent(worker) == [("a", 1)]
    assert desk.left() == 0


@on_sqlite
def test_what_the_database_has_undone_leaves_no_events_behind(desk: AlchemyDesk) -> None:
    """A full disk undoes all of a transaction that meets it: here at the row."""
    with desk.sessions() as session:
        session.add(Thing(id=1))
        session.flush()
        pages = session.scalar(text("PRAGMA page_count"))
        session.execute(text(f"PRAGMA max_page_count = {pages}"))
        desk.dying.publish_on_commit(session, Noted(key="a" * 100_000, number=0))
        with pytest.raises(OperationalError, match="full"):
            session.commit()
        with pytest.raises(PendingRollbackError):
            session.commit()
    assert desk.left() == 0


def test_an_engine_that_commits_each_statement_is_refused(desk: AlchemyDesk) -> None:
    loose = desk.engine.execution_options(isolation_level="AUTOCOMMIT")
    with Session(loose) as session:
        desk.dying.publish_on_commit(session, Noted(key="a", number=0))
        with pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
            session.commit()
    assert desk.left() == 0


class TestOrder:
    """Who had to wait for another transaction has its events behind that one's."""

    @pytest.fixture
    def pool(self) -> Iterator[ThreadPoolExecutor]:
        """Ends when the sessions are closed: until then what it runs may wait for them."""
        with ThreadPoolExecutor(1) as pool:
            yield pool

    @contextmanager
    def waits(self, pool: ThreadPoolExecutor, engine: Engine, session: Session) -> Iterator[None]:
        """Commit in a thread, which waits for a lock while the block runs."""
        query = text("SELECT count(*) FROM pg_locks WHERE NOT granted")

        def is_waiting() -> bool:
            with engine.connect() as connection:
                return bool(connection.scalar(query) == 1)

        committed = pool.submit(session.commit)
        until(is_waiting, message="the other transaction waits")
        yield
        committed.result(10)

    @on_postgresql
    def test_for_a_deferred_constraint(
        self, desk: AlchemyDesk, pool: ThreadPoolExecutor, worker: TestWorker
    ) -> None:
        with desk.engine.begin() as connection:
            unique = "UNIQUE (k) DEFERRABLE INITIALLY DEFERRED"
            connection.execute(text(f"CREATE TABLE seat (k integer, {unique})"))
            connection.execute(text("INSERT INTO seat VALUES (1)"))
        with desk.sessions() as first, desk.sessions() as second:
            first.execute(text("DELETE FROM seat"))
            second.execute(text("INSERT INTO seat VALUES (1)"))
            desk.dying.publish_on_commit(second, Noted(key="a", number=1))
            with self.waits(pool, desk.engine, second):
                desk.dying.publish_on_commit(first, Noted(key="a", number=0))
                first.commit()
        assert desk.relay().turn().sent == 2
        assert sent(worker) == [("a", 0), ("a", 1)]

    @on_postgresql
    def test_for_what_a_listener_changes_at_last(
        self, desk: AlchemyDesk, pool: ThreadPoolExecutor, worker: TestWorker
    ) -> None:
        def change(session: Session) -> None:
            session.execute(update(Thing).values(size=Thing.size + 1))

        with desk.sessions.begin() as session:
            session.add(Thing(id=1))
        with desk.sessions() as first, desk.sessions() as second:
            change(first)
            desk.dying.publish_on_commit(second, Noted(key="a", number=1))
            events.listen(second, "before_commit", change)
            with self.waits(pool, desk.engine, second):
                desk.dying.publish_on_commit(first, Noted(key="a", number=0))
                first.commit()
        assert desk.relay().turn().sent == 2
        assert sent(worker) == [("a", 0), ("a", 1)]

    def test_of_one_session_that_publishes_by_two_outboxes(
        self, desk: AlchemyDesk, worker: TestWorker
    ) -> None:
        with desk.sessions.begin() as session:
            for number in range(6):
                outbox = desk.dying if number % 2 else Outbox(desk.app)
                outbox.publish_on_commit(session, Noted(key="a", number=number))
        assert desk.relay().turn().sent == 6
        assert sent(worker) == [("a", number) for number in range(6)]


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
