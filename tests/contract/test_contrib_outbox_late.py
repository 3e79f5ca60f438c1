"""What is published, or handed on, when the session has told of its commit already."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path
from typing import Any
from weakref import ref

import pytest
from sqlalchemy import Engine, create_engine, func, insert, select
from sqlalchemy import event as events
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import IntegrityError, InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, SessionTransaction
from sqlalchemy.pool import NullPool
from worker.contrib.outbox.sender import Sender
from worker.contrib.sqlalchemy import parts
from worker.contrib.sqlalchemy.tables import outbox_table

from databases import Database
from outboxes import AlchemyDesk, Noted, sent
from things import Base, Thing
from worker import ConfigurationError
from worker.testing import TestWorker

_ROWS = select(func.count()).select_from(outbox_table)


MODES = ["conditional_savepoint", "rollback_only", "create_savepoint", "control_fully"]


@pytest.fixture
def integration() -> str:
    return "sqlalchemy"


@pytest.fixture(autouse=True)
def _things(engine: Engine) -> None:
    Base.metadata.create_all(engine)


def note(desk: AlchemyDesk, session: Session, number: int = 0) -> None:
    desk.outbox.publish_on_commit(session, Noted(key="a", number=number))


def leave(desk: AlchemyDesk, session: Session) -> None:
    """Publish what no sender looks for."""
    desk.dying.publish_on_commit(session, Noted(key="a", number=0))


def once(session: Session, moment: str, do: Any) -> None:
    """Call ``do`` at the next of these moments, once."""
    events.listen(session, moment, do, once=True)


def whole_of(session: Session) -> SessionTransaction:
    """Return the outermost transaction: its commit ends savepoints that were left open."""
    whole = session.get_transaction()
    assert whole is not None
    return whole


def left_behind(desk: AlchemyDesk, worker: TestWorker) -> list[Any]:
    assert desk.outbox.flush()
    assert desk.left() == 0
    return sent(worker)


@pytest.mark.parametrize("depth", [1, 2])
def test_a_savepoint_that_a_listener_rolls_back_takes_its_own_events_along_alone(
    desk: AlchemyDesk, worker: TestWorker, depth: int
) -> None:
    def roll_back(session: Session) -> None:
        savepoint = session.get_nested_transaction()
        assert savepoint is not None
        savepoint.rollback()

    with desk.sessions.begin() as session:
        note(desk, session, 0)
        for number in range(1, depth + 1):
            session.begin_nested()
            note(desk, session, number)
        once(session, "before_commit", roll_back)
    assert left_behind(desk, worker) == [("a", number) for number in range(depth)]


def test_a_savepoint_whose_commit_is_refused_and_tried_again_is_no_commit(
    desk: AlchemyDesk, worker: TestWorker
) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("not yet")

    with desk.sessions.begin() as session:
        savepoint = session.begin_nested()
        session.add(Thing(id=1))
        note(desk, session, 0)
        once(session, "before_flush", refuse)
        with pytest.raises(ValueError, match="not yet"):
            savepoint.commit()
        savepoint.commit()
        assert session.scalar(_ROWS) == 0, "they are written right before the commit"
        note(desk, session, 1)
        assert session.scalar(_ROWS) == 0
    assert left_behind(desk, worker) == [("a", 0), ("a", 1)]


def test_what_is_published_when_a_savepoint_is_committed_goes_on_with_the_one_around_it(
    desk: AlchemyDesk, worker: TestWorker
) -> None:
    """Also where that is the first, and all is committed just then."""
    for is_first in (True, False):
        with desk.sessions.begin() as session:
            session.begin_nested()
            if not is_first:
                note(desk, session, 0)
            once(session, "after_commit", lambda session: note(desk, session, 1))
    assert left_behind(desk, worker) == [("a", 1), ("a", 0), ("a", 1)]


@pytest.mark.filterwarnings("ignore:nested transaction already deassociated")
def test_a_savepoint_that_a_flush_leaves_open_takes_nothing_else_along(
    desk: AlchemyDesk, worker: TestWorker
) -> None:
    with desk.sessions.begin() as session:
        once(session, "before_flush", lambda session, *_: session.begin_nested())
        with session.begin_nested():
            note(desk, session, 0)
            session.add(Thing(id=1))
    assert left_behind(desk, worker) == [("a", 0)]


def test_sessions_with_the_same_info_have_what_each_published(
    desk: AlchemyDesk, worker: TestWorker
) -> None:
    with desk.sessions() as session:
        with session.begin_nested():
            note(desk, session, -1)
        with desk.sessions(info=session.info) as other:
            note(desk, other, 0)
            other.commit()
        session.rollback()
    assert left_behind(desk, worker) == [("a", 0)]


@pytest.mark.parametrize("is_first", [True, False])
def test_what_is_published_when_all_is_committed_is_an_error(
    desk: AlchemyDesk, worker: TestWorker, *, is_first: bool
) -> None:
    """And the session can be used again once it is closed, as after any error of a listener."""
    session = desk.sessions()
    session.add(Thing(id=1))
    if not is_first:
        note(desk, session, 0)
    once(session, "after_commit", lambda session: note(desk, session, -1))
    with pytest.raises(RuntimeError, match="after the commit"):
        session.commit()
    session.close()
    assert session.get(Thing, 1) is not None
    note(desk, session, 1)
    session.commit()
    session.close()
    assert left_behind(desk, worker) == ([] if is_first else [("a", 0)]) + [("a", 1)]


class TestTransactionThatTheSessionHasJoined:
    """It is the connection's, and ends with that: as the tests of an application do it."""

    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("moment", ["in the block", "before_commit", "after_flush"])
    @pytest.mark.parametrize("is_kept", [True, False])
    def test_its_events_are_its_rows(
        self, desk: AlchemyDesk, mode: Any, moment: str, *, is_kept: bool
    ) -> None:
        with desk.engine.connect() as connection:
            with connection.begin() as transaction:
                with Session(connection, join_transaction_mode=mode) as session:
                    session.add(Thing(id=1))
                    if moment == "in the block":
                        session.begin_nested()
                        leave(desk, session)
                    else:
                        once(session, moment, lambda session, *_: leave(desk, session))
                    whole_of(session).commit()
                if mode != "control_fully":
                    assert connection.scalar(_ROWS) == 1
                    if not is_kept:
                        transaction.rollback()
            rows = connection.scalar(_ROWS)
        assert rows == int(is_kept or mode == "control_fully")

    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("ends", ["before", "after"])
    def test_what_its_owner_has_rolled_back_leaves_with_no_other_one(
        self, desk: AlchemyDesk, mode: Any, ends: str
    ) -> None:
        """Whether the session ends before the next one commits, or after it."""
        with desk.engine.connect() as connection:
            owner = connection.begin()
            session = Session(connection, join_transaction_mode=mode)
            with session.begin_nested():
                session.add(Thing(id=1))
                leave(desk, session)
            owner.rollback()
            with connection.begin():
                connection.execute(insert(Thing).values(id=2))
                if ends == "before":
                    # SQLAlchemy tells of it in two modes, the outbox in the others.
                    with pytest.raises((InvalidRequestError, RuntimeError)):
                        session.commit()
            session.close()
            assert [*connection.scalars(select(Thing.id))] == [2]
        assert desk.left() == 0

    def test_two_sessions_in_one_have_what_each_published(
        self, desk: AlchemyDesk, worker: TestWorker
    ) -> None:
        with desk.sessions.begin() as session:
            note(desk, session, 0)
            with session.begin_nested():
                session.add(Thing(id=1))
                note(desk, session, 1)
            with Session(session.connection()) as other:
                other.add(Thing(id=2))
                note(desk, other, 2)
                other.commit()
            session.begin_nested()
            session.add(Thing(id=3))
            note(desk, session, 3)
        assert desk.relay().turn().sent == 4
        assert left_behind(desk, worker) == [("a", 2), ("a", 0), ("a", 1), ("a", 3)]

    def test_others_that_end_without_a_commit_take_nothing_along(self, desk: AlchemyDesk) -> None:
        with desk.engine.connect() as connection, connection.begin():
            reader = Session(connection)
            reader.execute(_ROWS)
            with Session(connection) as session:
                session.add(Thing(id=1))
                leave(desk, session)
                session.commit()
            reader.close()
        assert desk.left() == 1

    @pytest.mark.parametrize("mode", MODES)
    def test_a_savepoint_after_its_owner_has_rolled_it_back_joins_no_other_one(
        self, desk: AlchemyDesk, mode: Any
    ) -> None:
        with desk.engine.connect() as connection:
            owner = connection.begin()
            session = Session(connection, join_transaction_mode=mode)
            session.add(Thing(id=1))
            leave(desk, session)
            session.flush()
            owner.rollback()
            with connection.begin():
                connection.execute(insert(Thing).values(id=2))
                with session.begin_nested():
                    pass
            session.close()
        assert desk.left() == 0

    def test_rows_that_cannot_be_written_are_told_as_what_they_are(self, desk: AlchemyDesk) -> None:
        outbox_table.drop(desk.engine)
        with desk.engine.connect() as connection, connection.begin():
            session = Session(connection)
            session.add(Thing(id=1))
            leave(desk, session)
            with pytest.raises(ConfigurationError, match="has no table qworker_outbox"):
                session.commit()
            session.close()

    @pytest.mark.parametrize("database", ["postgresql", "mariadb"], indirect=True)
    def test_of_two_phases_which_its_owner_does_not_prepare(self, desk: AlchemyDesk) -> None:
        with desk.engine.connect() as connection:
            connection.begin_twophase()
            with Session(connection, join_transaction_mode="control_fully") as session:
                session.add(Thing(id=1))
                leave(desk, session)
                session.commit()
        assert desk.left() == 1

    @pytest.mark.parametrize("mode", ["create_savepoint", "conditional_savepoint"])
    def test_what_a_session_has_rolled_back_does_not_leave_with_its_owner(
        self, desk: AlchemyDesk, mode: Any
    ) -> None:
        """A commit failed, and nobody has closed the session."""
        with desk.sessions.begin() as owner:
            owner.add(Thing(id=1))
            with owner.begin_nested():
                session = Session(owner.connection(), join_transaction_mode=mode)
                leave(desk, session)
                session.add(Thing(id=1))
                with pytest.raises(IntegrityError):
                    session.commit()
        session.close()
        assert desk.left() == 0

    @pytest.mark.parametrize("database", ["postgresql", "mariadb"], indirect=True)
    def test_of_two_phases_which_cannot_be_committed_nothing_is_left(
        self, desk: AlchemyDesk
    ) -> None:
        outbox_table.drop(desk.engine)
        with desk.engine.connect() as connection:
            whole = connection.begin_twophase()
            session = Session(connection, join_transaction_mode="rollback_only")
            session.add(Thing(id=1))
            session.flush()
            leave(desk, session)
            with pytest.raises(ConfigurationError, match="has no table qworker_outbox"):
                whole.commit()
            whole.rollback()
            session.close()
        with desk.sessions() as other:
            assert other.get(Thing, 1) is None

    def test_forgotten_sessions_are_forgotten_by_its_connection(self, desk: AlchemyDesk) -> None:
        with desk.engine.connect() as connection, connection.begin():
            for _ in range(10):
                Session(connection).execute(_ROWS)
                gc.collect()
            assert len(parts._SESSIONS[connection]) <= 2

    def test_a_sender_is_not_told_before_it_is_committed(
        self, desk: AlchemyDesk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        told: list[object] = []
        monkeypatch.setattr(Sender, "wake", lambda _self, rows: told.extend(rows))
        with desk.engine.connect() as connection, connection.begin():
            with Session(connection) as session, session.begin():
                session.add(Thing(id=1))
                note(desk, session)
            assert connection.scalar(_ROWS) == 1
        assert told == []


class TestRowsThatTheConnectionCannotWrite:
    """Then there is no commit, and nothing of it is left for the next one."""

    @pytest.fixture(autouse=True)
    def _no_table(self, engine: Engine) -> None:
        outbox_table.drop(engine)

    def refused(self, desk: AlchemyDesk, session: Session) -> None:
        """Try to commit, which says what is wrong."""
        session.add(Thing(id=1))
        once(session, "after_flush", lambda session, *_: leave(desk, session))
        with pytest.raises(ConfigurationError, match="has no table qworker_outbox"):
            session.commit()

    def test_nothing_is_committed(self, desk: AlchemyDesk) -> None:
        with Session(desk.engine) as session:
            self.refused(desk, session)
            session.rollback()
            session.commit()
            assert session.get(Thing, 1) is None

    def test_nor_with_a_connection_that_is_used_on(self, desk: AlchemyDesk) -> None:
        with desk.engine.connect() as connection:
            session = Session(connection)
            self.refused(desk, session)
            session.rollback()
            session.close()
            connection.execute(select(1))  # begins, as SQLAlchemy takes it, another transaction
            connection.commit()
            assert connection.scalar(select(func.count()).select_from(Thing)) == 0

    def test_where_the_connection_is_lost_that_is_what_is_told(self, desk: AlchemyDesk) -> None:
        def lose(context: ExceptionContext) -> None:
            context.is_disconnect = True

        events.listen(desk.engine, "handle_error", lose)
        with Session(desk.engine) as session:
            self.refused(desk, session)

    @pytest.mark.parametrize("database", ["sqlite"], indirect=True)
    @pytest.mark.parametrize("moment", ["in the block", "after_flush"])
    def test_nor_in_another_database(self, desk: AlchemyDesk, moment: str, tmp_path: Path) -> None:
        """Whichever of the two the session would have committed first."""
        other = create_engine(f"sqlite:///{tmp_path / 'things.db'}")
        Base.metadata.create_all(other)
        for number in range(20):
            with Session(binds={Thing: other, outbox_table: desk.engine}) as session:
                session.add(Thing(id=number))
                session.begin_nested()
                if moment == "in the block":
                    leave(desk, session)
                else:
                    session.add(Thing(id=1000 + number))
                    once(session, moment, lambda session, *_: leave(desk, session))
                with pytest.raises(ConfigurationError, match="has no table qworker_outbox"):
                    whole_of(session).commit()
        with Session(other) as session:
            assert session.scalar(select(func.count()).select_from(Thing)) == 0
        other.dispose()


@pytest.mark.parametrize("database", ["postgresql", "mariadb"], indirect=True)
class TestTwoPhases:
    """A transaction that is prepared takes no more rows."""

    @pytest.mark.parametrize("moment", ["in the block", "before_commit", "after_flush"])
    def test_its_rows_are_written_before(
        self, desk: AlchemyDesk, worker: TestWorker, moment: str
    ) -> None:
        with Session(desk.engine, twophase=True) as session:
            session.add(Thing(id=1))
            if moment == "in the block":
                session.begin_nested()
                note(desk, session)
            else:
                once(session, moment, lambda session, *_: note(desk, session))
            whole_of(session).commit()
        assert left_behind(desk, worker) == [("a", 0)]

    def test_what_is_published_then_is_an_error(
        self, desk: AlchemyDesk, worker: TestWorker
    ) -> None:
        with Session(desk.engine, twophase=True) as session:
            note(desk, session)
            session.prepare()
            with pytest.raises(RuntimeError, match="after the commit"):
                note(desk, session, 1)
            session.commit()
            note(desk, session, 2)
            session.commit()
        assert left_behind(desk, worker) == [("a", 0), ("a", 2)]

    def test_where_the_rows_cannot_be_written_nothing_is_committed(self, desk: AlchemyDesk) -> None:
        outbox_table.drop(desk.engine)
        with Session(desk.engine, twophase=True) as session:
            session.add(Thing(id=1))
            once(session, "after_flush", lambda session, *_: leave(desk, session))
            # SQLAlchemy 2.0 puts an error of its own, about its state, in place of the first.
            with pytest.raises((ConfigurationError, InvalidRequestError)):
                session.commit()
        with desk.sessions() as session:
            assert session.get(Thing, 1) is None


def test_a_transaction_whose_end_was_not_told_leaves_nothing_for_the_next_one(
    desk: AlchemyDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the rollback fails, as on a connection that is lost, SQLAlchemy tells nobody."""

    def fail(*_: object) -> None:
        raise OSError("lost")

    with desk.sessions() as session:
        session.add(Thing(id=1))
        leave(desk, session)
        session.flush()
        lost = session.connection()
        monkeypatch.setattr(desk.engine.dialect, "do_rollback", fail)
        with pytest.raises(OSError, match="lost"):
            session.close()
        monkeypatch.undo()
        lost.invalidate()
        session.add(Thing(id=2))
        session.commit()
    assert desk.left() == 0


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, asyncio.CancelledError])
def test_a_connection_that_cannot_be_rolled_back_is_not_used_again(
    desk: AlchemyDesk, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def fail(*_: object) -> None:
        raise error

    outbox_table.drop(desk.engine)
    session = desk.sessions()
    session.add(Thing(id=1))
    once(session, "after_flush", lambda session, *_: leave(desk, session))
    monkeypatch.setattr(desk.engine.dialect, "do_rollback", fail)
    with pytest.raises(ConfigurationError if error is OSError else error):
        session.commit()
    monkeypatch.undo()
    session.close()
    with desk.sessions.begin() as session:
        assert session.get(Thing, 1) is None
        session.add(Thing(id=2))
    with desk.sessions() as session:
        assert [*session.scalars(select(Thing.id))] == [2]


class TestCoroutines:
    """Publishing is no coroutine, so it talks to no database."""

    def test_a_savepoint_before_it_changes_nothing(
        self, desk: AlchemyDesk, database: Database, worker: TestWorker
    ) -> None:
        async def publish() -> None:
            engine = create_async_engine(database.async_url, poolclass=NullPool)
            async with AsyncSession(engine) as session, session.begin():
                async with session.begin_nested():
                    pass
                desk.outbox.publish_on_commit(session, Noted(key="a", number=0))

        asyncio.run(publish())
        assert left_behind(desk, worker) == [("a", 0)]

    @pytest.mark.parametrize("moment", ["before_commit", "after_flush"])
    def test_listeners_publish_too(
        self, desk: AlchemyDesk, database: Database, worker: TestWorker, moment: str
    ) -> None:
        async def publish() -> None:
            engine = create_async_engine(database.async_url, poolclass=NullPool)
            async with AsyncSession(engine) as session, session.begin():
                once(session.sync_session, moment, lambda session, *_: note(desk, session))
                session.add(Thing(id=1))

        asyncio.run(publish())
        assert left_behind(desk, worker) == [("a", 0)]


def test_a_transaction_that_was_begun_before_the_import_has_its_rows_in_it(
    desk: AlchemyDesk,
) -> None:
    outbox_table.drop(desk.engine)
    with desk.sessions() as session:
        session.add(Thing(id=1))
        session.flush()
        del session.info[parts._KEY], parts._SESSIONS[session.connection()]  # nothing was heard
        leave(desk, session)
        with pytest.raises(ConfigurationError, match="has no table qworker_outbox"):
            session.commit()
        session.rollback()
        assert session.get(Thing, 1) is None


def test_two_outboxes_in_one_session_have_what_each_published(
    desk: AlchemyDesk, worker: TestWorker
) -> None:
    another = desk.another()
    with desk.sessions.begin() as session:
        session.begin_nested()
        for number in range(4):
            outbox = another if number % 2 else desk.outbox
            outbox.publish_on_commit(session, Noted(key=str(number % 2), number=number))
    assert another.flush()
    assert sorted(left_behind(desk, worker)) == [("0", 0), ("0", 2), ("1", 1), ("1", 3)]


def test_a_session_that_is_forgotten_publishes_nothing(desk: AlchemyDesk) -> None:
    """Nor does the next one on its connection."""
    session = desk.sessions()
    session.add(Thing(id=1))
    with session.begin_nested():
        leave(desk, session)
    session.flush()
    known = ref(session)
    del session
    gc.collect()
    assert known() is None
    with desk.sessions.begin() as session:
        session.add(Thing(id=1))
    assert desk.left() == 0


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize("moment", ["in the block", "before_commit", "after_flush", "after_commit"])
def test_an_outbox_in_another_database_of_the_session_has_its_rows_too(
    desk: AlchemyDesk, worker: TestWorker, moment: str, tmp_path: Path
) -> None:
    """Whatever of the transaction is in the other one, and nothing else is in this."""
    other = create_engine(f"sqlite:///{tmp_path / 'things.db'}")
    Base.metadata.create_all(other)
    with Session(binds={Thing: other, outbox_table: desk.engine}) as session, session.begin():
        session.begin_nested()
        session.add(Thing(id=1))
        if moment == "in the block":
            note(desk, session)
        else:  # after the commit of the savepoint, that is
            once(session, moment, lambda session, *_: note(desk, session))
    other.dispose()
    assert left_behind(desk, worker) == [("a", 0)]
