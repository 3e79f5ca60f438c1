"""``publish_on_commit``: events become rows right before the commit, and leave right after it.

What a transaction publishes waits in its session. When that is about to commit, all of it is
flushed, and then the rows are written: so whoever had to wait for this transaction (for a row that
it changed) writes its own rows later, and gets higher sequence numbers; and between their numbers
and the commit is nothing but that. What is published in a savepoint that is rolled back is not
written; nor is anything of a transaction that is rolled back, or closed.

After the commit the :class:`~worker.contrib.outbox.Sender` is told which rows there are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import BigInteger, insert, literal_column
from sqlalchemy import event as events
from sqlalchemy.ext.asyncio import AsyncSession
from worker.contrib.outbox import Sender, columns_of
from worker.contrib.sqlalchemy.rows import OutboxRows
from worker.contrib.sqlalchemy.tables import outbox_table

from worker import Relayed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Engine
    from sqlalchemy.orm import Session, SessionTransaction

    from worker import App, Command, Context, Event

_XID = literal_column("pg_current_xact_id()::text::bigint", BigInteger)


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
        self._app = app
        self._sender = None if engine is None else Sender(app, OutboxRows(engine, app.name))

    def publish_on_commit(  # noqa: PLR0913 - the facts of a message
        self,
        session: Session | AsyncSession,
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
        the event cannot be encoded.
        """
        if context is not None:
            if headers is not None or priority is not None or correlation_id is not None:
                raise TypeError("with a context, headers come by Relayed, and the rest by itself")
            outgoing = context.encode(event)
        elif isinstance(event, Relayed):
            raise TypeError("a Relayed tells of a child: publish_on_commit needs its context")
        else:
            outgoing = self._app.encode(
                event, headers=headers, priority=priority, correlation_id=correlation_id
            )
        row = columns_of(self._app.name, outgoing)
        sync = session.sync_session if isinstance(session, AsyncSession) else session
        _Pending.of(sync, self._sender).add(sync, row)
        return outgoing.message_id

    def flush(self, timeout: float = 10.0) -> bool:
        """Wait until all that this process committed has left, or is left to the relay.

        For the end of a short program. Tells whether it came to that within ``timeout`` seconds.
        """
        return self._sender is None or self._sender.flush(timeout)


class _Pending:
    """What the transactions of one session publish by one outbox."""

    def __init__(self, session: Session, sender: Sender | None) -> None:
        self._sender = sender
        #: What is to be written, by the transaction or savepoint that published it.
        self._rows: dict[SessionTransaction, list[dict[str, Any]]] = {}
        self._written: list[dict[str, Any]] = []
        events.listen(session, "before_commit", self._before_commit)
        events.listen(session, "after_commit", self._after_commit)
        events.listen(session, "after_transaction_end", self._after_end)

    @classmethod
    def of(cls, session: Session, sender: Sender | None) -> _Pending:
        """Return that of the session, made if need be."""
        known: dict[int, _Pending] = session.info.setdefault("qworker_outbox", {})
        if id(sender) not in known:
            known[id(sender)] = cls(session, sender)
        return known[id(sender)]

    def add(self, session: Session, row: dict[str, Any]) -> None:
        """Publish with the innermost transaction that is open; one is begun where none is."""
        begun = session.get_nested_transaction() or session.get_transaction() or session.begin()
        self._rows.setdefault(begun, []).append(row)

    def _before_commit(self, session: Session) -> None:
        savepoint = session.get_nested_transaction()
        if savepoint is not None:
            rows = self._rows.pop(savepoint, [])
            self._rows.setdefault(_around(savepoint), []).extend(rows)
            return
        root = session.get_transaction()
        rows = [] if root is None else self._rows.pop(root, [])
        if not rows:
            return
        session.flush()
        connection = session.connection(bind_arguments={"clause": outbox_table})
        statement = insert(outbox_table)
        if connection.dialect.name == "postgresql":
            statement = statement.values(transaction_id=_XID)
        connection.execute(statement, rows)
        self._written += rows

    def _after_commit(self, session: Session) -> None:
        if session.get_nested_transaction() is None and self._written:
            if self._sender is not None:
                self._sender.wake(self._written)
            self._written = []

    def _after_end(self, _session: Session, transaction: SessionTransaction) -> None:
        """Forget what was published in it, unless it was handed on: it is rolled back."""
        self._rows.pop(transaction, None)
        if transaction.parent is None:
            self._written = []


def _around(savepoint: SessionTransaction) -> SessionTransaction:
    """Return the savepoint, or the transaction, that one is in."""
    outer = savepoint.parent
    while outer is not None and outer.parent is not None and not outer.nested:
        outer = outer.parent
    return savepoint if outer is None else outer
