"""What a session publishes, until its transaction has ended: written right before the commit.

1. What is published waits for the end of the transaction, or savepoint, that is the innermost one
   then. A savepoint that succeeds hands it on to the one around it; what ends otherwise takes it
   along.
2. When the outermost is about to commit, the session is flushed, and the rows are written behind
   all that it changed. What listeners of the commit publish after that is written at once, and what
   comes of a flush that they cause, at the end of that. A savepoint that was left open is ended by
   that commit, which has told of itself before: so it is counted who has told, and the rows are
   written when the last savepoint has ended.
3. After the commit the sender is told.

Listeners are those of all sessions, since a session that is in the midst of an event takes no new
ones for it; a session that publishes nothing costs them a look into a dictionary.

SQLite's drivers begin no transaction for a savepoint. One that comes first would be committed at
its release, before the rest of its transaction and without the events of that; so one is begun.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import BigInteger, Engine, insert, literal_column
from sqlalchemy import event as events
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from worker.contrib.missing import is_missing_table
from worker.contrib.outbox.postgres import XID
from worker.contrib.sqlalchemy.connecting import connection_to, is_autocommit
from worker.contrib.sqlalchemy.tables import missing, outbox_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection
    from sqlalchemy.orm import SessionTransaction

    from contrib.outbox.sender import Sender

_XID = literal_column(XID, BigInteger)
#: Where a session has what it publishes; and that the rows of its commit are written already.
_KEY, _COMMITTING = "qworker_outbox", "qworker_outbox_committing"
#: Where it has how many commits each savepoint was open at: its own, and of those it is in. And how
#: many of these are still to end, between the end of one and its close.
_COMMITS, _OUTER = "qworker_outbox_commits", "qworker_outbox_outer"

Row = dict[str, Any]


class Pending:
    """What the transactions of one session publish by one outbox."""

    def __init__(self, sender: Sender | None) -> None:
        self._sender = sender
        #: What is to be written, by the transaction or savepoint that published it.
        self._waiting: dict[SessionTransaction, list[Row]] = {}
        self._written: list[Row] = []

    @classmethod
    def of(cls, session: Session, sender: Sender | None) -> Pending:
        """Return that of the session, made if need be."""
        known: dict[int, Pending] = session.info.setdefault(_KEY, {})
        if id(sender) not in known:
            known[id(sender)] = cls(sender)
        return known[id(sender)]

    def add(self, session: Session, row: Row) -> None:
        """Publish with the innermost transaction that is open; one is begun where none is."""
        begun = session.get_nested_transaction() or session.get_transaction() or session.begin()
        self._waiting.setdefault(begun, []).append(row)
        in_flush = session._flushing  # noqa: SLF001 - nothing public tells it, to who comes amid it
        if session.info.get(_COMMITTING) and not in_flush:
            self.write(session, begun)

    def write(self, session: Session, begun: SessionTransaction) -> None:
        """Write what waits for the end of this one. What cannot be written goes on waiting."""
        if rows := self._waiting.get(begun):
            self._write(session, rows)
            del self._waiting[begun]

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

    def after_end(self, transaction: SessionTransaction) -> None:
        """Forget what was published in it, and not handed on: it is rolled back, or closed."""
        self._waiting.pop(transaction, None)
        if transaction.parent is None:
            self._written = []

    def _write(self, session: Session, rows: Sequence[Row]) -> None:
        """Write rows. Raises ConfigurationError where the table is not there."""
        connection = connection_to(outbox_table, session)
        statement = insert(outbox_table)
        if connection.dialect.name == "postgresql":
            statement = statement.values(transaction_id=_XID)
        try:
            connection.execute(statement, rows)
        except DBAPIError as error:
            if is_missing_table(error.orig):
                raise missing(outbox_table, connection.engine) from None
            raise
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
    begun = session.get_nested_transaction() or session.get_transaction()
    if begun is not None:
        _commits(session, begun, 1)


def _commits(session: Session, begun: SessionTransaction, times: int) -> None:
    """Know of so many commits that end ``begun``; write the rows where it is the outermost one."""
    if begun.nested:  # whether it publishes or not: what its flush does may be the first to
        commits = session.info.setdefault(_COMMITS, {})
        commits[begun] = commits.get(begun, 0) + times
        return
    if _all(session):
        session.flush()
    for each in _all(session):
        each.write(session, begun)
    # What other listeners publish from here on is written at once.
    session.info[_COMMITTING] = True


@events.listens_for(Session, "after_commit")
def _after_commit(session: Session) -> None:
    savepoint = session.get_nested_transaction()
    if commits := session.info.get(_COMMITS):
        session.info[_OUTER] = commits.get(savepoint, 1) - 1
    for each in _all(session):
        each.after_commit(session)


@events.listens_for(Session, "after_transaction_end")
def _after_end(session: Session, transaction: SessionTransaction) -> None:
    for each in _all(session):
        each.after_end(transaction)
    session.info.get(_COMMITS, {}).pop(transaction, None)
    if (outer := session.info.pop(_OUTER, 0)) and transaction.nested:
        _commits(session, _around(transaction), outer)
    root = session.get_transaction()
    if root is None:
        session.info.pop(_COMMITTING, None)
    elif session.info.get(_COMMITTING) and session.is_active:  # a flush in the commit is through
        for each in _all(session):
            each.write(session, root)


@events.listens_for(Engine, "savepoint")
def _savepoint(connection: Connection, _name: str | None) -> None:
    if connection.dialect.name == "sqlite" and not is_autocommit(connection):
        driver = connection.connection.driver_connection
        if driver is not None and not driver.in_transaction:
            connection.exec_driver_sql("BEGIN")
