"""How a transaction of the inbox may end: with all of its effect and its id, or with an error."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, insert, select, text
from sqlalchemy import event as events
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from sqlalchemy.pool import NullPool
from worker.contrib.sqlalchemy import AsyncInbox, Inbox, create_tables
from worker.contrib.sqlalchemy.tables import inbox_table

from databases import Database
from worker import App, Context, Event, RetryPolicy
from worker.testing import TestWorker


class Base(DeclarativeBase):
    """The tables of the application."""


class Line(Base):
    """An effect."""

    __tablename__ = "line"
    number: Mapped[int] = mapped_column(primary_key=True)


class Ordered(Event, name="ordered"):
    number: int


@pytest.fixture
def engine(database: Database) -> Iterator[Engine]:
    engine = create_engine(database.url)
    Base.metadata.create_all(engine)
    create_tables(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def inbox(engine: Engine) -> Inbox[Session]:
    return Inbox(sessionmaker(engine))


on_postgresql = pytest.mark.parametrize("database", ["postgresql"], indirect=True)


def handled(
    handle: Callable[..., Any], *, attempts: int = 1, timeout: float | None = None
) -> list[str]:
    """Let it handle an event; return why that is set aside, if it is."""
    app = App("shop")
    app.on(Ordered, name="book", retry=RetryPolicy(attempts=attempts), timeout=timeout)(handle)
    with TestWorker(app) as worker:
        worker.publish(Ordered(number=1))
        worker.run()
        return [letter.reason for letter in worker.dead_letters]


def effects(engine: Engine) -> tuple[int, int]:
    """Return how many there are, and how many ids are remembered."""
    with Session(engine) as session:
        lines, ids = session.scalars(select(Line.number)), session.scalars(select(inbox_table.c.at))
        return len([*lines]), len([*ids])


@on_postgresql
class TestAborted:
    """PostgreSQL rolls back at the COMMIT after a statement that failed, and raises nothing."""

    def test_an_error_that_is_passed_over_fails_the_handler(
        self, engine: Engine, inbox: Inbox[Session]
    ) -> None:
        def handle(event: Ordered, context: Context) -> None:
            with inbox.transaction(context) as session:
                session.add(Line(number=event.number))
                session.flush()
                with pytest.raises(DBAPIError):
                    session.execute(text("SELECT * FROM nowhere"))

        (reason,) = handled(handle)
        assert "current transaction is aborted" in reason
        assert effects(engine) == (0, 0)

    def test_and_is_tried_again(self, engine: Engine, inbox: Inbox[Session]) -> None:
        def handle(event: Ordered, context: Context) -> None:
            with inbox.transaction(context) as session:
                session.add(Line(number=event.number))
                if context.attempt == 1:
                    with pytest.raises(DBAPIError):
                        session.execute(text("SELECT * FROM nowhere"))

        assert handled(handle, attempts=2) == []
        assert effects(engine) == (1, 1)

    def test_and_in_a_coroutine(self, engine: Engine, database: Database) -> None:
        async def handle(event: Ordered, context: Context) -> None:
            own = create_async_engine(database.async_url, poolclass=NullPool)
            async with AsyncInbox(async_sessionmaker(own)).transaction(context) as session:
                session.add(Line(number=event.number))
                with pytest.raises(DBAPIError):
                    await session.execute(text("SELECT * FROM nowhere"))

        (reason,) = handled(handle)
        assert "current transaction is aborted" in reason
        assert effects(engine) == (0, 0)


@pytest.mark.filterwarnings("ignore:nested transaction already deassociated")
def test_a_savepoint_that_a_flush_leaves_open_is_committed_with_the_rest(
    engine: Engine, inbox: Inbox[Session]
) -> None:
    def handle(event: Ordered, context: Context) -> None:
        with inbox.transaction(context) as session:
            events.listen(session, "before_flush", lambda s, *_: s.begin_nested(), once=True)
            session.add(Line(number=event.number))

    assert handled(handle) == []
    assert effects(engine) == (1, 1)


class TestRolledBack:
    """By the handler itself, within the block."""

    def test_and_raised_it_is_tried_again(self, engine: Engine, inbox: Inbox[Session]) -> None:
        """A habit of many: roll back what the session has, and raise."""

        def handle(event: Ordered, context: Context) -> None:
            with inbox.transaction(context) as session:
                session.add(Line(number=event.number))
                if context.attempt == 1:
                    session.rollback()
                    raise ValueError("a passing trouble")

        assert handled(handle, attempts=2) == []
        assert effects(engine) == (1, 1)

    @pytest.mark.parametrize("how", ["rollback", "close"])
    def test_and_returned_it_is_no_success(
        self, engine: Engine, inbox: Inbox[Session], how: str
    ) -> None:
        def handle(event: Ordered, context: Context) -> None:
            with inbox.transaction(context) as session:
                session.add(Line(number=event.number))
                session.flush()
                if context.attempt == 1:
                    getattr(session, how)()

        (reason,) = handled(handle)
        assert "ended within its block without a commit" in reason
        assert effects(engine) == (0, 0)
        assert handled(handle, attempts=2) == []
        assert effects(engine) == (1, 1)

    @pytest.mark.parametrize("by", ["flush", "commit", "a query"])
    def test_by_a_flush_that_failed_it_is_no_success(
        self, engine: Engine, inbox: Inbox[Session], by: str
    ) -> None:
        """A session is closed then at the end of its block, without a commit or an error."""
        fails: dict[str, Callable[[Session], object]] = {
            "flush": Session.flush,
            "commit": Session.commit,
            "a query": lambda session: session.scalars(select(Line)),
        }

        def handle(event: Ordered, context: Context) -> None:
            with inbox.transaction(context) as session:
                session.execute(insert(Line).values(number=event.number))
                if context.attempt == 1:
                    session.add(Line(number=event.number))
                    with pytest.raises(IntegrityError):
                        fails[by](session)

        (reason,) = handled(handle)
        assert "ended within its block without a commit" in reason
        assert effects(engine) == (0, 0)
        assert handled(handle, attempts=2) == []
        assert effects(engine) == (1, 1)

    def test_by_a_flush_that_failed_in_a_coroutine(
        self, engine: Engine, database: Database
    ) -> None:
        async def handle(event: Ordered, context: Context) -> None:
            own = create_async_engine(database.async_url, poolclass=NullPool)
            async with AsyncInbox(async_sessionmaker(own)).transaction(context) as session:
                await session.execute(insert(Line).values(number=event.number))
                session.add(Line(number=event.number))
                with pytest.raises(IntegrityError):
                    await session.flush()

        (reason,) = handled(handle)
        assert "ended within its block without a commit" in reason
        assert effects(engine) == (0, 0)

    def test_and_in_a_coroutine(self, engine: Engine, database: Database) -> None:
        async def handle(event: Ordered, context: Context) -> None:
            own = create_async_engine(database.async_url, poolclass=NullPool)
            async with AsyncInbox(async_sessionmaker(own)).transaction(context) as session:
                session.add(Line(number=event.number))
                if context.attempt == 1:
                    await session.rollback()
                if context.attempt == 2:
                    await session.rollback()
                    raise ValueError("a passing trouble")

        (reason,) = handled(handle)
        assert "ended within its block without a commit" in reason
        assert handled(handle, attempts=3) == []
        assert effects(engine) == (1, 1)


class TestCommitted:
    """By the handler itself, within the block."""

    def test_as_its_last_line_is_as_good_as_the_end(
        self, engine: Engine, inbox: Inbox[Session]
    ) -> None:
        def handle(event: Ordered, context: Context) -> None:
            with inbox.transaction(context) as session:
                session.add(Line(number=event.number))
                session.commit()

        assert handled(handle) == []
        assert effects(engine) == (1, 1)

    def test_what_fails_after_it_is_not_tried_again(
        self, engine: Engine, inbox: Inbox[Session]
    ) -> None:
        """The next attempt would find the id, and take the rest for done."""

        def handle(event: Ordered, context: Context) -> None:
            with inbox.transaction(context) as session:
                session.add(Line(number=event.number))
                session.commit()
                raise ValueError("half of it")

        (reason,) = handled(handle, attempts=3)
        assert "ended within its block by a commit" in reason
        assert effects(engine) == (1, 1)

    def test_so_is_what_runs_out_of_time_after_it(self, engine: Engine, database: Database) -> None:
        async def handle(event: Ordered, context: Context) -> None:
            own = create_async_engine(database.async_url, poolclass=NullPool)
            async with AsyncInbox(async_sessionmaker(own)).transaction(context) as session:
                session.add(Line(number=event.number))
                await session.commit()
                await asyncio.Event().wait()

        (reason,) = handled(handle, attempts=3, timeout=0.5)
        assert "ended within its block by a commit" in reason
        assert effects(engine) == (1, 1)

    def test_so_is_what_ends_by_no_exception_after_it(
        self, engine: Engine, inbox: Inbox[Session]
    ) -> None:
        def handle(event: Ordered, context: Context) -> None:
            with inbox.transaction(context) as session:
                session.add(Line(number=event.number))
                session.commit()
                sys.exit("half of it")

        (reason,) = handled(handle, attempts=3)
        assert "ended within its block by a commit" in reason
        assert effects(engine) == (1, 1)

    def test_so_is_what_runs_out_of_time_in_it(self, engine: Engine, database: Database) -> None:
        """It may be committed: the next attempt would find it done, and leave out the rest."""

        async def handle(event: Ordered, context: Context) -> None:
            own = create_async_engine(database.async_url, poolclass=NullPool)
            task, soon = asyncio.current_task(), asyncio.get_running_loop().call_soon
            assert task is not None
            async with AsyncInbox(async_sessionmaker(own)).transaction(context) as session:
                session.add(Line(number=event.number))
                events.listen(own.sync_engine, "commit", lambda _: soon(task.cancel))
                await session.commit()

        (reason,) = handled(handle, attempts=3)
        assert "was being committed within its block when" in reason
        assert effects(engine) in {(0, 0), (1, 1)}

    def test_so_is_what_loses_its_connection_in_it(
        self, engine: Engine, inbox: Inbox[Session], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        dialect: Any = engine.dialect

        def commit_and_be_cut_off(connection: Any) -> None:
            monkeypatch.undo()
            connection.commit()
            monkeypatch.setattr(dialect, "is_disconnect", lambda *_: True)
            raise dialect.loaded_dbapi.OperationalError("cut off")

        def handle(event: Ordered, context: Context) -> None:
            with inbox.transaction(context) as session:
                session.add(Line(number=event.number))
                monkeypatch.setattr(dialect, "do_commit", commit_and_be_cut_off)
                session.commit()
                session.add(Line(number=event.number))

        (reason,) = handled(handle, attempts=3)
        monkeypatch.undo()
        assert "was being committed within its block when" in reason
        assert effects(engine) == (1, 1)

    @pytest.mark.parametrize("is_caught", [False, True])
    def test_where_the_database_had_undone_it_there_is_no_commit(
        self, engine: Engine, inbox: Inbox[Session], *, is_caught: bool
    ) -> None:
        """The effect would be in another transaction, without the id."""

        def handle(event: Ordered, context: Context) -> None:
            with inbox.transaction(context) as session:
                session.execute(text("ROLLBACK"))  # as a deadlock that was passed over
                session.add(Line(number=event.number))
                with pytest.raises(RuntimeError) if is_caught else nullcontext():
                    session.commit()

        (reason,) = handled(handle)
        assert "ended within its block without a commit" in reason
        assert effects(engine) == (0, 0)

    @pytest.mark.parametrize("moment", ["before_commit", "after_flush"])
    def test_nor_where_it_is_undone_in_the_midst_of_that(
        self, engine: Engine, inbox: Inbox[Session], moment: str
    ) -> None:
        """A listener met the deadlock, and passed it over."""

        def undo(session: Session, *_: object) -> None:
            session.connection().exec_driver_sql("ROLLBACK")

        def handle(event: Ordered, context: Context) -> None:
            with inbox.transaction(context) as session:
                events.listen(session, moment, undo)
                session.add(Line(number=event.number))

        (reason,) = handled(handle)
        assert "ended within its block without a commit" in reason
        assert effects(engine) == (0, 0)

    def test_a_connection_that_the_session_has_joined_is_asked_too(self, engine: Engine) -> None:
        """Where the handler's session is one of a test, say."""

        def handle(event: Ordered, context: Context) -> None:
            with engine.connect() as connection, connection.begin():
                joined = Inbox(sessionmaker(connection))
                with joined.transaction(context) as session:
                    if is_undone:
                        session.execute(text("ROLLBACK"))
                    session.add(Line(number=event.number))

        for is_undone in (True, False):
            assert bool(handled(handle)) == is_undone
        assert effects(engine) == (1, 1)

    @pytest.mark.parametrize("is_undone", [False, True])
    def test_a_savepoint_that_is_left_open_is_a_part_of_it(
        self, engine: Engine, inbox: Inbox[Session], *, is_undone: bool
    ) -> None:
        def handle(event: Ordered, context: Context) -> None:
            with inbox.transaction(context) as session:
                if is_undone:
                    session.execute(text("ROLLBACK"))  # as a deadlock that was passed over
                session.begin_nested()
                session.add(Line(number=event.number))

        assert bool(handled(handle)) == is_undone
        assert effects(engine) == ((0, 0) if is_undone else (1, 1))

    def test_a_savepoint_may_be_in_the_midst_of_a_flush(
        self, engine: Engine, inbox: Inbox[Session]
    ) -> None:
        """Hooks get or create with one."""

        def create(session: Session, *_: object) -> None:
            with session.begin_nested():
                session.execute(insert(Line).values(number=99))

        def handle(event: Ordered, context: Context) -> None:
            with inbox.transaction(context) as session:
                events.listen(session, "after_flush", create)
                session.add(Line(number=event.number))

        assert handled(handle) == []
        assert effects(engine) == (2, 1)

    def test_a_savepoint_is_no_commit(self, engine: Engine, inbox: Inbox[Session]) -> None:
        def handle(event: Ordered, context: Context) -> None:
            with inbox.transaction(context) as session:
                with session.begin_nested():
                    session.add(Line(number=event.number))
                if context.attempt == 1:
                    session.rollback()
                    raise ValueError("a passing trouble")

        assert handled(handle, attempts=2) == []
        assert effects(engine) == (1, 1)


@pytest.mark.parametrize("said_to", ["the engine", "its option", "the driver"])
def test_an_engine_that_commits_each_statement_is_refused(
    database: Database, engine: Engine, said_to: str
) -> None:
    """Else the id would stay where the effect is rolled back."""
    level = "AUTOCOMMIT"
    if said_to == "the engine":
        loose = create_engine(database.url, isolation_level=level, poolclass=NullPool)
    elif said_to == "the driver":
        how = {"isolation_level": None} if database.kind == "sqlite" else {"autocommit": True}
        loose = create_engine(database.url, connect_args=how, poolclass=NullPool)
    else:
        loose = engine.execution_options(isolation_level=level)

    def handle(event: Ordered, context: Context) -> None:
        with Inbox(sessionmaker(loose)).transaction(context) as session:
            session.add(Line(number=event.number))

    (reason,) = handled(handle, attempts=2)
    assert "AUTOCOMMIT" in reason
    assert effects(engine) == (0, 0)


@pytest.mark.parametrize("database", ["postgresql", "mariadb"], indirect=True)
def test_and_for_coroutines(engine: Engine, database: Database) -> None:
    how = {"autocommit": True}
    loose = create_async_engine(database.async_url, connect_args=how, poolclass=NullPool)

    async def handle(event: Ordered, context: Context) -> None:
        async with AsyncInbox(async_sessionmaker(loose)).transaction(context) as session:
            session.add(Line(number=event.number))

    (reason,) = handled(handle)
    assert "AUTOCOMMIT" in reason
    assert effects(engine) == (0, 0)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_driver_whose_transactions_a_listener_begins_is_not_refused(
    engine: Engine, database: Database
) -> None:
    """As SQLAlchemy's documentation has it for SQLite."""
    begun = create_engine(database.url, connect_args={"isolation_level": None}, poolclass=NullPool)
    events.listen(begun, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))

    def handle(event: Ordered, context: Context) -> None:
        with Inbox(sessionmaker(begun)).transaction(context) as session:
            session.add(Line(number=event.number))

    assert handled(handle) == []
    assert effects(engine) == (1, 1)


def test_a_session_with_a_copy_of_its_info_is_not_asked(engine: Engine) -> None:
    def handle(event: Ordered, context: Context) -> None:
        with Inbox(sessionmaker(engine)).transaction(context) as session:
            with Session(session.connection(), info=session.info) as other:
                other.commit()
            session.add(Line(number=event.number))

    assert handled(handle) == []
    assert effects(engine) == (1, 1)
