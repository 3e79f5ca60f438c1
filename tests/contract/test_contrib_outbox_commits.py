"""What a commit has to do with its events: they are all in it, behind what it waited for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from worker.contrib.sqlalchemy import create_tables

from databases import Database
from outboxes import Desk, Noted
from worker import App, ConfigurationError


class Base(DeclarativeBase):
    """The tables of the application."""


class Thing(Base):
    """What an event may speak of."""

    __tablename__ = "thing"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    size: Mapped[int] = mapped_column(default=0)


@pytest.fixture
def engine(database: Database) -> Iterator[Engine]:
    engine = create_engine(database.url)
    Base.metadata.create_all(engine)
    create_tables(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def desk(engine: Engine) -> Desk:
    return Desk(App("desk"), engine)


def test_an_engine_that_commits_each_statement_is_refused(desk: Desk) -> None:
    loose = desk.engine.execution_options(isolation_level="AUTOCOMMIT")
    with Session(loose) as session:
        desk.dying.publish_on_commit(session, Noted(key="a", number=0))
        with pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
            session.commit()
    assert desk.left() == 0
