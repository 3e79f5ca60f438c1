"""What the tests of the outbox share: events with a place in the order of their key, and a desk."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session, sessionmaker
from worker.contrib.outbox import Relay
from worker.contrib.sqlalchemy import Outbox, OutboxRows
from worker.contrib.sqlalchemy.tables import outbox_table

from worker import App, Command, Event
from worker.testing import TestWorker


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


class Desk:
    """An application with an outbox, and a relay of it."""

    def __init__(self, app: App, engine: Engine) -> None:
        self.app = app
        self.engine = engine
        self.sessions = sessionmaker(engine)
        self.rows = OutboxRows(engine, app.name)
        self.outbox = Outbox(app, engine)
        #: That of a process which dies before it sends.
        self.dying = Outbox(app)

    def relay(self, **options: Any) -> Relay:
        """Return a relay that leaves nothing to others."""
        return Relay(self.app, self.rows, **{"grace": 0.0, **options})

    def begin(self) -> AbstractContextManager[Session]:
        """Begin a transaction, committed at the end of the block."""
        return self.sessions.begin()

    def leave(self, *events: Event | Command) -> None:
        """Commit events, and die before they are sent."""
        with self.begin() as session:
            for event in events:
                self.dying.publish_on_commit(session, event)

    def left(self) -> int:
        """Return how many rows there are."""
        with self.sessions() as session:
            return session.scalar(select(func.count()).select_from(outbox_table)) or 0


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
