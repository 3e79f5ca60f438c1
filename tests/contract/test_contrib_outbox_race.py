"""The race of the talk: an event is out before its data is, and who hears of it asks too early.

A bank opens an account and publishes that, both in one transaction, as a view does that is wrapped
in one. A service downstream hears of it and asks the bank for the account at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import Engine, String, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from worker.contrib.sqlalchemy import Outbox, create_tables

from databases import Database
from worker import App, Event, RetryPolicy
from worker.testing import TestWorker


class Base(DeclarativeBase):
    """The bank's tables."""


class Account(Base):
    """What is asked for."""

    __tablename__ = "account"
    id: Mapped[str] = mapped_column(String(50), primary_key=True)


class AccountOpened(Event, name="account.opened", key="account"):
    account: str


@pytest.fixture
def engine(database: Database) -> Iterator[Engine]:
    engine = create_engine(database.url)
    Base.metadata.create_all(engine)
    create_tables(engine)
    yield engine
    engine.dispose()


Publish = Callable[[Session, Event], object]


def answers(engine: Engine, app: App, publish: Publish, sent: Callable[[], bool]) -> list[str]:
    """Open an account while the service downstream is as quick as it can be; return what it got."""
    got: list[str] = []

    @app.on(AccountOpened, retry=RetryPolicy(attempts=1))
    def ask_back(event: AccountOpened) -> None:
        with Session(engine) as session:
            found = session.get(Account, event.account)
        got.append("404 not found" if found is None else "200 ok")

    with TestWorker(app) as worker:
        with sessionmaker(engine).begin() as session:
            session.add(Account(id="a1"))
            publish(session, AccountOpened(account="a1"))
            sent()
            worker.run()  # downstream handles all that is out, before the commit
        sent()
        worker.run()
    return got


def test_published_before_the_commit_it_is_asked_for_too_early(engine: Engine) -> None:
    """Without an outbox: so the next test would notice the race."""
    app = App("bank")
    got = answers(engine, app, lambda _, event: app.publish(event), lambda: True)
    assert got == ["404 not found"]


def test_published_on_commit_it_is_there(engine: Engine) -> None:
    app = App("bank")
    outbox = Outbox(app, engine)
    assert answers(engine, app, outbox.publish_on_commit, outbox.flush) == ["200 ok"]
