"""Sessions do what they can, in any order: the database has each change with its event, or neither.

Each step that publishes inserts a Thing of the same number. So the database itself tells what is
committed; nothing here knows the rules of savepoints.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, create_engine, delete, insert, select
from sqlalchemy import event as events
from sqlalchemy.orm import Session
from worker.contrib.sqlalchemy import Outbox, create_tables
from worker.contrib.sqlalchemy.tables import outbox_table

from outboxes import Noted
from things import Base, Thing
from worker import App

MODES = ["conditional_savepoint", "rollback_only", "create_savepoint", "control_fully"]
MOMENTS = [
    "before_flush", "after_flush", "after_flush_postexec", "before_commit", "after_begin",
    "after_rollback",
]  # fmt: skip


class Trouble(Exception):
    """A listener's."""


class Program:
    """A session, and what it may do next."""

    def __init__(self, outbox: Outbox, session: Session) -> None:
        self._outbox = outbox
        self._session = session
        self._numbers = count(1)
        self._savepoints: list[Any] = []
        #: What was published without an error, in that order.
        self.published: list[int] = []

    def publish(self) -> None:
        number = next(self._numbers)
        self._session.execute(insert(Thing).values(id=number))
        self._outbox.publish_on_commit(self._session, Noted(key="a", number=number))
        self.published.append(number)

    def add(self) -> None:
        self._session.add(Thing(id=10_000 + next(self._numbers)))

    def begin(self) -> None:
        self._savepoints.append(self._session.begin_nested())

    def keep(self) -> None:
        self._end(-1, "commit")

    def undo(self) -> None:
        self._end(-1, "rollback")

    def keep_first(self) -> None:
        self._end(0, "commit")

    def undo_first(self) -> None:
        self._end(0, "rollback")

    def flush(self) -> None:
        self._session.flush()

    def commit(self) -> None:
        self._savepoints.clear()
        self._session.commit()

    def commit_whole(self) -> None:
        """End what is left open by the outermost one."""
        self._savepoints.clear()
        if (whole := self._session.get_transaction()) is not None:
            whole.commit()

    def roll_back(self) -> None:
        self._savepoints.clear()
        self._session.rollback()

    def listen(self, moment: str, action: str) -> None:
        """Do something at the next such moment, once."""
        events.listen(self._session, moment, lambda *_: self._act(action), once=True)

    def _end(self, place: int, how: str) -> None:
        if self._savepoints:
            savepoint = self._savepoints[place]
            del self._savepoints[place:]
            getattr(savepoint, how)()

    def _act(self, action: str) -> None:
        match action:
            case "publish":
                self.publish()
            case "raise":
                raise Trouble
            case "keep one":
                with self._session.begin_nested():
                    self.publish()
            case "undo one":
                savepoint = self._session.begin_nested()
                self.publish()
                savepoint.rollback()
            case "undo the innermost":
                if (innermost := self._session.get_nested_transaction()) is not None:
                    innermost.rollback()


PLAIN = [
    Program.publish, Program.publish, Program.add, Program.begin, Program.begin, Program.keep,
    Program.undo, Program.keep_first, Program.undo_first, Program.flush, Program.commit,
    Program.commit_whole, Program.roll_back,
]  # fmt: skip
ACTIONS = ["publish", "raise", "keep one", "undo one", "undo the innermost"]
steps: st.SearchStrategy[Callable[[Program], None]] = st.one_of(
    st.sampled_from(PLAIN),
    st.builds(
        lambda moment, action: lambda program: program.listen(moment, action),
        st.sampled_from(MOMENTS),
        st.sampled_from(ACTIONS),
    ),
)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    path: Path = tmp_path_factory.mktemp("programs") / "effects.db"
    engine = create_engine(f"sqlite:///{path}")

    @events.listens_for(engine, "connect")
    def hurry(connection: Any, _record: object) -> None:
        connection.execute("PRAGMA synchronous = OFF")

    Base.metadata.create_all(engine)
    create_tables(engine)
    yield engine
    engine.dispose()


def run(program: Program, session: Session, what: list[Callable[[Program], None]]) -> bool:
    """Take all steps; what raises is rolled back, as it has to be. Tell whether that was so."""
    for step in [*what, Program.commit]:
        try:
            step(program)
        except Exception:  # noqa: BLE001 - of SQLAlchemy's many, and a listener's
            try:
                program.roll_back()
            except Exception:  # noqa: BLE001 - a listener's again, or the session cannot
                session.close()
                return False
    return True


@given(what=st.lists(steps, min_size=2, max_size=14), joins=st.sampled_from([None, *MODES]))
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@pytest.mark.filterwarnings("ignore")
def test_each_change_has_its_event_and_each_event_its_change(
    engine: Engine, what: list[Callable[[Program], None]], joins: Any
) -> None:
    outbox = Outbox(App("desk"))
    if joins is None:
        with Session(engine) as session:
            program = Program(outbox, session)
            run(program, session, what)
    else:
        with engine.connect() as connection, connection.begin() as owner:
            with Session(connection, join_transaction_mode=joins) as session:
                program = Program(outbox, session)
                is_well = run(program, session, what)
            if not is_well:  # whatever the session has joined does not end with it
                owner.rollback()
            elif owner.is_active:
                owner.commit()
    with engine.begin() as connection:
        things = {*connection.scalars(select(Thing.id).where(Thing.id < 10_000))}
        bodies = connection.scalars(select(outbox_table.c.body).order_by(outbox_table.c.sequence))
        found = [json.loads(body)["number"] for body in bodies]
        connection.execute(delete(Thing))
        connection.execute(delete(outbox_table))
    assert found == [number for number in program.published if number in things]
