"""What the tests of the outbox share: events with a place in the order of their key, and a desk."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from sqlalchemy import URL, Engine, func, select, text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import NullPool
from worker.contrib.outbox import Relay
from worker.contrib.sqlalchemy import AsyncInbox, Inbox, Outbox, OutboxRows
from worker.contrib.sqlalchemy.tables import outbox_table

from worker import App, Command, Context, Event
from worker.testing import TestWorker

#: The drivers whose threads and coroutines have not the same one.
_OF_ASYNCIO = {"sqlite": "sqlite+aiosqlite", "mysql+pymysql": "mysql+asyncmy"}


class Noted(Event, name="noted", key="key"):
    """The ``number``-th of its key."""

    key: str
    number: int


class Loose(Event, name="loose"):
    """Of no key."""

    number: int


class Order(Command, name="order", to="nobody", key="key"):
    """To a service that was never started."""

    key: str
    number: int


class Deal(ABC):
    """A transaction that is open, in the way of one integration."""

    def __init__(self, outbox: Any) -> None:
        self._outbox = outbox

    def publish(
        self, event: Any, context: Context | None = None, *, by: Any = None, **facts: Any
    ) -> str:
        """Publish on its commit, by the desk's outbox or another one; return the id."""
        return str(self.publish_by(by or self._outbox, event, context, **facts))

    @abstractmethod
    def publish_by(self, outbox: Any, event: Any, context: Context | None, **facts: Any) -> str:
        """Publish by this outbox."""

    @abstractmethod
    def savepoint(self) -> AbstractContextManager[Any]:
        """Begin one that is kept if its block ends well."""

    @abstractmethod
    def execute(self, statement: str, **values: Any) -> list[Any]:
        """Execute a statement, whose values are ``:named``; return its rows."""


class Desk(ABC):
    """An application with an outbox, and a relay of it.

    Whichever integration it has, the tests look at its tables by an engine of SQLAlchemy's.
    """

    rows: Any
    outbox: Any
    #: That of a process which dies before it sends.
    dying: Any

    def __init__(self, app: App, engine: Engine) -> None:
        self.app = app
        self.engine = engine

    @abstractmethod
    def begin(self) -> AbstractContextManager[Deal]:
        """Begin a transaction, committed at the end of the block."""

    @abstractmethod
    def effect(self, context: Context) -> AbstractContextManager[Deal]:
        """Begin the transaction of an inbox."""

    @abstractmethod
    async def effect_async(self, context: Context, *statements: str, **values: Any) -> None:
        """Execute statements in the transaction of an inbox for coroutines."""

    @abstractmethod
    def purge(self, older_than: float) -> int:
        """Forget old ids of the inbox."""

    @abstractmethod
    def another(self) -> Any:
        """Return the outbox of another process."""

    @abstractmethod
    def neighbour(self, app: App) -> Desk:
        """Return the desk of another service in the same database."""

    @abstractmethod
    def close(self) -> None:
        """Close what the desk has opened."""

    def relay(self, **options: Any) -> Relay:
        """Return a relay that leaves nothing to others."""
        return Relay(self.app, self.rows, **{"grace": 0.0, **options})

    def leave(self, *events: Event | Command) -> None:
        """Commit events, and die before they are sent."""
        with self.begin() as deal:
            for event in events:
                deal.publish(event, by=self.dying)

    def left(self) -> int:
        """Return how many rows there are."""
        with self.engine.connect() as connection:
            return connection.scalar(select(func.count()).select_from(outbox_table)) or 0


class AlchemyDesk(Desk):
    """One on SQLAlchemy."""

    def __init__(self, app: App, engine: Engine) -> None:
        super().__init__(app, engine)
        self.sessions = sessionmaker(engine)
        self.rows = OutboxRows(engine, app.name)
        self.outbox = Outbox(app, engine)
        self.dying = Outbox(app)

    @contextmanager
    def begin(self) -> Iterator[Deal]:
        """Begin a session's."""
        with self.sessions.begin() as session:
            yield _Session(self.outbox, session)

    @contextmanager
    def effect(self, context: Context) -> Iterator[Deal]:
        """Begin that of an inbox."""
        with Inbox(self.sessions).transaction(context) as session:
            yield _Session(self.outbox, session)

    async def effect_async(self, context: Context, *statements: str, **values: Any) -> None:
        """Execute them in a session of asyncio's."""
        engine = create_async_engine(self.async_url, poolclass=NullPool)
        async with AsyncInbox(async_sessionmaker(engine)).transaction(context) as session:
            for statement in statements:
                await session.execute(text(statement), values)

    @property
    def async_url(self) -> URL:
        """Where the database is for asyncio."""
        url = self.engine.url
        return url.set(drivername=_OF_ASYNCIO.get(url.drivername, url.drivername))

    def purge(self, older_than: float) -> int:
        """Forget old ids."""
        return int(Inbox(self.sessions).purge(older_than))

    def another(self) -> Outbox:
        """Return an outbox with a sender of its own."""
        return Outbox(self.app, self.engine)

    def neighbour(self, app: App) -> AlchemyDesk:
        """Return one on the same engine."""
        return AlchemyDesk(app, self.engine)

    def close(self) -> None:
        """Do nothing: all connections are the engine's."""


class _Session(Deal):
    def __init__(self, outbox: Outbox, session: Session) -> None:
        super().__init__(outbox)
        self._session = session

    def publish_by(self, outbox: Outbox, event: Any, context: Context | None, **facts: Any) -> str:
        return str(outbox.publish_on_commit(self._session, event, context, **facts))

    def savepoint(self) -> AbstractContextManager[Any]:
        return self._session.begin_nested()

    def execute(self, statement: str, **values: Any) -> list[Any]:
        result: Any = self._session.execute(text(statement), values)
        return [*result] if result.returns_rows else []


def sent(worker: TestWorker) -> list[Any]:
    """Return what reached the broker, each copy of it: (key, number), or the number alone."""
    found: list[Any] = []
    for arrival in worker._tap.arrivals():
        fields = json.loads(arrival.body)
        found.append((fields["key"], fields["number"]) if "key" in fields else fields["number"])
    return found


def by_key(places: Iterable[tuple[str, int]]) -> dict[str, list[int]]:
    """Return the numbers of each key, in their order."""
    found: dict[str, list[int]] = defaultdict(list)
    for key, number in places:
        found[key].append(number)
    return dict(found)
