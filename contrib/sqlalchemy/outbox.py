"""``publish_on_commit``: events become rows right before the commit, and leave right after it.

What a transaction publishes waits in its session (:mod:`worker.contrib.sqlalchemy.pending`). When
its connection is about to commit, all else is done, and the rows are written: so whoever had to
wait for this transaction (for a row that it changed) writes its own rows later, and gets higher
sequence numbers; and between their numbers and the commit is nothing but that.

After the commit the :class:`~worker.contrib.outbox.Sender` is told which rows there are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_scoped_session
from sqlalchemy.orm import Session, scoped_session
from sqlalchemy.pool import StaticPool
from worker.contrib.outbox import Sender, columns_of, encoded
from worker.contrib.sqlalchemy.inbox import is_over
from worker.contrib.sqlalchemy.pending import Pending
from worker.contrib.sqlalchemy.rows import OutboxRows

from worker import App, ConfigurationError, Reject

if TYPE_CHECKING:
    from collections.abc import Mapping

    from worker import Command, Context, Event, Outgoing, Relayed

    AnySession = (
        Session | scoped_session[Session] | AsyncSession | async_scoped_session[AsyncSession]
    )


_TOO_LATE = (
    "publish_on_commit was called with the session of inbox.transaction after the commit of that:"
    " no commit comes that the event could leave with; put it into the block"
)


class Outbox:
    """Publishes events of ``app`` with the transactions that they speak of. Any thread may use it.

    ``engine`` is a plain Engine of the same database, also where sessions are of asyncio: a thread
    sends by it what was committed. Without one all of it is left to ``qworker outbox``, which has
    to run anyway, for what a crash leaves. ::

        outbox = Outbox(app, engine)

        with sessions.begin() as session:
            session.add(Account(id=user_id))
            outbox.publish_on_commit(session, UserCreated(user_id=user_id))
    """

    def __init__(self, app: App, engine: Engine | None = None) -> None:
        if not isinstance(app, App):
            raise ConfigurationError(
                "an outbox is given the app whose events it publishes, as in Outbox(app, engine),"
                f" and not this {type(app).__name__}"
            )
        if not isinstance(engine, Engine | AsyncEngine | None):
            raise ConfigurationError(
                "an outbox is given the engine of its database, as in Outbox(app, engine), and not"
                f" this {type(engine).__name__}"
            )
        if engine is not None and isinstance(engine.pool, StaticPool):
            raise ConfigurationError(
                "the engine of this outbox has one connection for all threads (StaticPool), and the"
                " outbox sends by a thread of its own, which would commit what is open there: give"
                " it an engine with another pool, or none, as in Outbox(app): then a relay sends"
            )
        self._app = app
        self._sender = None if engine is None else Sender(app, OutboxRows(engine, app.name))

    def publish_on_commit(  # noqa: PLR0913 - the facts of a message
        self,
        session: AnySession,
        event: Event | Command | Relayed,
        context: Context | None = None,
        *,
        headers: Mapping[str, Any] | None = None,
        priority: int | None = None,
        correlation_id: str | None = None,
    ) -> str:
        """Let ``event`` leave once the transaction of ``session`` is committed; return its id.

        In a handler, say its ``context``: the event is then a child of the message, as by
        ``context.publish``, with an id that a second run repeats; a ``Relayed`` says its headers,
        and the other arguments are not for it. Does no I/O. Raises TypeError or ValueError where
        the event cannot be encoded, RuntimeError after the commit, as in a listener of
        ``after_commit``, and Reject where ``inbox.transaction`` gave the session, and that
        transaction is committed.
        """
        plain = _plain(session)
        outgoing: Outgoing = encoded(
            self._app,
            event,
            context,
            headers=headers,
            priority=priority,
            correlation_id=correlation_id,
        )
        row = columns_of(self._app.name, outgoing)
        if is_over(plain):
            raise Reject(_TOO_LATE)
        Pending.of(plain).add(plain, self._sender, row)
        return outgoing.message_id

    def flush(self, timeout: float = 10.0) -> bool:
        """Wait until all that this process committed has left, or is left to the relay.

        For the end of a short program. Tells whether it came to that within ``timeout`` seconds.
        """
        return self._sender is None or self._sender.flush(timeout)


def _plain(session: AnySession) -> Session:
    """Return the session behind a registry, and behind one of asyncio."""
    if isinstance(session, scoped_session | async_scoped_session):
        session = session()
    if not isinstance(session, Session | AsyncSession):
        raise TypeError(
            "publish_on_commit(session, event, context): its session comes first, and this is a"
            f" {type(session).__name__}"
        )
    return session.sync_session if isinstance(session, AsyncSession) else session
