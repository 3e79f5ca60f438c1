"""What a session publishes, until its transaction has ended: written right before the commit.

1. What is published waits for the end of the transaction, or savepoint, that is the innermost one
   then. A savepoint that succeeds hands it on to the one around it; what ends otherwise takes it
   along.
2. When the outermost is about to commit, the session is flushed, and the rows are written behind
   all that it changed. What is published within a flush, from a mapper's event, say, is written at
   the end of that flush; what comes when those rows are written already, at once.
3. After the commit the sender is told.

Listeners are those of all sessions, since a session that is in the midst of an event takes no new
ones for it; a session that publishes nothing costs them a look into a dictionary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import BigInteger, insert, literal_column
from sqlalchemy import event as events
from sqlalchemy.orm import Session
from worker.contrib.outbox.postgres import XID
from worker.contrib.sqlalchemy.connecting import connection_to
from worker.contrib.sqlalchemy.tables import outbox_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.orm import SessionTransaction

    from contrib.outbox.sender import Sender

_XID = literal_column(XID, BigInteger)
#: Where a session has what it publishes; and that the rows of its commit, or of the flush that goes
#: on, are written already.
_KEY, _COMMITTING, _FLUSHED = (
    "qworker_outbox",
    "qworker_outbox_committing",
    "qworker_outbox_flushed",
)

Row = dict[str, Any]


class Pending:
    """What the transactions of one session publish by one outbox."""

    def __init__(self, sender: Sender | None) -> None:
        self._sender = sender
        #: What is to be written, by the transaction or savepoint that published it.
        self._waiting: dict[SessionTransaction, list[Row]] = {}
        #: What was published within the flush that goes on.
        self._flushing: list[Row] = []
        self._written: list[Row] = []

    @classmethod
    def of(cls, session: Session, sender: Sender | None) -> Pending:
        """Return that of the session, made if need be."""
        known: dict[int, Pending] = session.info.setdefault(_KEY, {})
        if id(sender) not in known:
            known[id(sender)] = cls(sender)
        return known[id(sender)]

    @property
    def is_written(self) -> bool:
        """Whether there are rows in the transaction that goes on."""
        return bool(self._written)

    def add(self, session: Session, row: Row) -> None:
        """Publish with the innermost transaction that is open; one is begun where none is."""
        flushing = session._flushing  # noqa: SLF001 - nothing public tells it, to who comes amid it
        if session.info.get(_FLUSHED if flushing else _COMMITTING):
            self._write(session, [row])
        elif flushing:
            self._flushing.append(row)
        else:
            begun = session.get_nested_transaction() or session.get_transaction()
            self._waiting.setdefault(begun or session.begin(), []).append(row)

    def before_commit(self, session: Session, root: SessionTransaction) -> None:
        """Write what waits: the outermost transaction is about to commit."""
        if rows := self._waiting.pop(root, []):
            self._write(session, rows)

    def after_commit(self, session: Session) -> None:
        """Hand on what a savepoint published; tell the sender what is committed for good."""
        savepoint = session.get_nested_transaction()
        if savepoint is not None:
            if rows := self._waiting.pop(savepoint, []):
                self._waiting.setdefault(_around(savepoint), []).extend(rows)
        elif self._written:
            written, self._written = self._written, []
            if self._sender is not None:
                self._sender.wake(written)

    def after_flush(self, session: Session) -> None:
        """Write what was published within a flush."""
        rows, self._flushing = self._flushing, []
        if rows:
            self._write(session, rows)

    def after_end(self, transaction: SessionTransaction) -> None:
        """Forget what was published in it, and not handed on: it is rolled back, or closed."""
        self._waiting.pop(transaction, None)
        self._flushing = []
        if transaction.parent is None:
            self._written = []

    def _write(self, session: Session, rows: Sequence[Row]) -> None:
        connection = connection_to(outbox_table, session)
        statement = insert(outbox_table)
        if connection.dialect.name == "postgresql":
            statement = statement.values(transaction_id=_XID)
        connection.execute(statement, rows)
        self._written += rows


def _around(savepoint: SessionTransaction) -> SessionTransaction:
    """Return the savepoint, or the transaction, that one is in."""
    outer = savepoint.parent
    while outer is not None and outer.parent is not None and not outer.nested:
        outer = outer.parent
    return savepoint if outer is None else outer


def _all(session: Session) -> list[Pending]:
    return [*session.info.get(_KEY, {}).values()]


@events.listens_for(Session, "before_commit")
def _before_commit(session: Session) -> None:
    root = session.get_transaction()
    if root is None or session.get_nested_transaction() is not None:
        return
    if pending := _all(session):
        session.flush()
        for each in pending:
            each.before_commit(session, root)
    # What other listeners publish from here on is written at once.
    session.info[_COMMITTING] = True


@events.listens_for(Session, "before_flush")
def _before_flush(session: Session, _context: object, _instances: object) -> None:
    session.info.pop(_FLUSHED, None)


@events.listens_for(Session, "after_flush")
def _after_flush(session: Session, _context: object) -> None:
    session.info[_FLUSHED] = True
    for each in _all(session):
        each.after_flush(session)


@events.listens_for(Session, "after_commit")
def _after_commit(session: Session) -> None:
    for each in _all(session):
        each.after_commit(session)


@events.listens_for(Session, "after_transaction_end")
def _after_end(session: Session, transaction: SessionTransaction) -> None:
    for each in _all(session):
        each.after_end(transaction)
    if transaction.parent is None:
        session.info.pop(_COMMITTING, None)
