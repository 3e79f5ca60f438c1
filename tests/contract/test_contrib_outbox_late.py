"""What is published, or handed on, when the session has told of its commit already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, func, select
from sqlalchemy import event as events
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from worker.contrib.sqlalchemy.tables import outbox_table

from databases import Database
from outboxes import AlchemyDesk, Noted, sent
from worker import ConfigurationError
from worker.testing import TestWorker

_ROWS = select(func.count()).select_from(outbox_table)


class Base(DeclarativeBase):
    """The tables of the application."""


class Thing(Base):
    """What an event may speak of."""

    __tablename__ = "thing"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)


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

    @pytest.mark.parametrize("mode", ["rollback_only", "create_savepoint", "control_fully"])
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
                    whole = session.get_transaction()
                    assert whole is not None
                    whole.commit()
                if mode != "control_fully":
                    assert connection.scalar(_ROWS) == 1
                    if not is_kept:
                        transaction.rollback()
            rows = connection.scalar(_ROWS)
        assert rows == int(is_kept or mode == "control_fully")


class TestRowsThatTheConnectionCannotWrite:
    """Then there is no commit."""

    @pytest.fixture
    def _no_table(self, engine: Engine) -> None:
        outbox_table.drop(engine)

    @pytest.mark.usefixtures("_no_table")
    @pytest.mark.parametrize("is_connection", [True, False])
    def test_nothing_is_committed(self, desk: AlchemyDesk, *, is_connection: bool) -> None:
        connection = desk.engine.connect()
        session = Session(connection if is_connection else desk.engine)
        session.add(Thing(id=1))
        once(session, "after_flush", lambda session, *_: leave(desk, session))
        with pytest.raises(ConfigurationError, match="has no table qworker_outbox"):
            session.commit()
        with pytest.raises(Exception, match=r"inactive|rolled back"):
            session.commit()
        session.rollback()
        session.commit()
        session.close()
        connection.execute(select(1))  # begins, as SQLAlchemy takes it, another transaction
        connection.commit()
        connection.close()
        with desk.sessions() as other:
            assert other.get(Thing, 1) is None


class TestTwoPhases:
    """A transaction that is prepared takes no more rows."""

    @pytest.mark.parametrize("database", ["postgresql", "mariadb"], indirect=True)
    @pytest.mark.parametrize("moment", ["in the block", "before_commit", "after_flush"])
    def test_its_rows_are_written_before(
        self, desk: AlchemyDesk, worker: TestWorker, moment: str, database: Database
    ) -> None:
        with Session(desk.engine, twophase=True) as session:
            session.add(Thing(id=1))
            if moment == "in the block":
                session.begin_nested()
                note(desk, session)
            else:
                once(session, moment, lambda session, *_: note(desk, session))
            whole = session.get_transaction()
            assert whole is not None
            whole.commit()
        assert left_behind(desk, worker) == [("a", 0)], database.kind


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
