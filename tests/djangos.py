"""Django in the process of the tests: set up once, and pointed at the database of each test."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

from django.core.management import call_command
from django.db import connections, transaction
from sqlalchemy import Engine
from worker.contrib.django import Inbox, Outbox, OutboxRows

from databases import Database
from django_settings import configuration, configure
from outboxes import Deal, Desk
from worker import App, Context

configure({})


@contextmanager
def pointed_at(database: Database, **others: dict[str, Any]) -> Iterator[None]:
    """Let ``default`` be this database while the block runs, with the tables of qworker in it."""
    before = connections.settings
    _point(connections.configure_settings({"default": configuration(database.url), **others}))
    try:
        call_command("migrate", "qworker", verbosity=0)
        yield
    finally:
        _point(before)


def _point(databases: dict[str, Any]) -> None:
    """Forget what this thread has open; other threads have no connection by then, or end."""
    connections.close_all()
    for alias in connections:
        with suppress(AttributeError):
            del connections[alias]
    connections.settings = databases


class DjangoDesk(Desk):
    """One on Django."""

    def __init__(self, app: App, engine: Engine) -> None:
        super().__init__(app, engine)
        self.rows = OutboxRows("default", app.name)
        self.dying = Outbox(app, sends=False)
        self._open = [self.rows]
        self.outbox = self.another()

    @contextmanager
    def begin(self) -> Iterator[Deal]:
        """Begin an atomic block; the thread, which may be about to end, keeps no connection."""
        try:
            with transaction.atomic():
                yield _Atomic(self.outbox)
        finally:
            connections["default"].close()

    @contextmanager
    def effect(self, context: Context) -> Iterator[Deal]:
        """Begin that of an inbox."""
        with Inbox().transaction(context):
            yield _Atomic(self.outbox)

    async def effect_async(self, context: Context, *statements: str, **values: Any) -> None:
        """Execute them in a thread."""

        def effect() -> None:
            for statement in statements:
                _Atomic(self.outbox).execute(statement, **values)

        await Inbox().run(context, effect)

    def purge(self, older_than: float) -> int:
        """Forget old ids."""
        return int(Inbox().purge(older_than))

    def another(self) -> Any:
        """Return an outbox with a sender of its own."""
        outbox = Outbox(self.app)
        self._open.append(outbox._sender._store)
        return outbox

    def neighbour(self, app: App) -> DjangoDesk:
        """Return one in the same database."""
        return DjangoDesk(app, self.engine)

    def close(self) -> None:
        """Close what senders have open, whose threads do not end."""
        for rows in self._open:
            rows.close()


class _Atomic(Deal):
    def publish_by(self, outbox: Any, event: Any, context: Context | None, **facts: Any) -> str:
        return str(outbox.publish_on_commit(event, context, **facts))

    def savepoint(self) -> AbstractContextManager[Any]:
        block: AbstractContextManager[Any] = transaction.atomic()
        return block

    def execute(self, statement: str, **values: Any) -> list[Any]:
        with connections["default"].cursor() as cursor:
            cursor.execute(re.sub(r"(?<!:):(\w+)", r"%(\1)s", statement), values or None)
            return [*cursor.fetchall()] if cursor.description else []
