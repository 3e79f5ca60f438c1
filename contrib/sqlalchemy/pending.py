"""What a session publishes, until its transaction has ended: written right before the commit.

1. What is published waits for the end of the transaction, or savepoint, that is the innermost one
   then. A savepoint that succeeds hands it on to the one around it; what ends otherwise takes it
   along.
2. When the session is about to commit its transaction, it is flushed, and the rows are written
   behind all that it changed. A commit that fails here can be tried again.
3. What waits then still, or again, is written when the connection is about to commit: what other
   listeners and the flushes of this commit have published; and all of it where a savepoint was left
   open, since a session does not tell its own commit from that of a savepoint.
4. A connection whose transaction the session has only joined commits later. There the rest is
   written when the session is through.
5. After the commit the sender is told.

Listeners are those of all sessions, since a session that is in the midst of an event takes no new
ones for it; a session that publishes nothing costs them a look into a dictionary.

SQLite's drivers begin no transaction for a savepoint. One that comes first would be committed at
its release, before the rest of its transaction and without the events of that; so one is begun.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, ref

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
#: Where a session has what it publishes.
_KEY = "qworker_outbox"
#: Where it has, until its transaction ends: that a commit has begun in it, be it of a savepoint;
#: and the connection that is asked then.
_COMMITTING, _CONNECTION = "qworker_outbox_committing", "qworker_outbox_connection"
#: Where it has the transaction or savepoint that is committed, until that ends.
_COMMITTED = "qworker_outbox_committed"
#: The session whose transaction a connection is about to commit.
_SESSIONS: WeakKeyDictionary[Connection, ref[Session]] = WeakKeyDictionary()

_TOO_LATE = (
    "publish_on_commit was called after the commit of its session, as by a listener of"
    " after_commit: no commit comes that the event could leave with; call it before"
)

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
        """Publish with the innermost transaction that is open; one is begun where none is.

        Raises RuntimeError where that is committed.
        """
        begun = session.get_nested_transaction() or session.get_transaction() or session.begin()
        committed = session.info.get(_COMMITTED)
        if begun is committed and begun.parent is None:
            raise RuntimeError(_TOO_LATE)
        self._waiting.setdefault(begun, []).append(row)
        if _COMMITTING in session.info and begun is not committed:
            _connect(session)

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def write(self, connection: Connection, begun: SessionTransaction | None) -> None:
        """Write what waits for the end of this one. What cannot be written goes on waiting."""
        if begun is not None and (rows := self._waiting.get(begun)):
            _write(connection, rows)
            self._written += self._waiting.pop(begun)

    def wake(self) -> None:
        """Tell the sender what is committed for good."""
        written, self._written = self._written, []
        if written and self._sender is not None:
            self._sender.wake(written)

    def end(self, transaction: SessionTransaction, *, is_committed: bool) -> None:
        """Hand on what a savepoint published; forget it where that was rolled back, or closed.

        Raises RuntimeError for what came after the outermost one was committed.
        """
        rows = self._waiting.pop(transaction, [])
        if transaction.parent is None:
            self._written = []
        if rows and is_committed:
            if transaction.parent is None:
                raise RuntimeError(_TOO_LATE)
            self._waiting.setdefault(_around(transaction), []).extend(rows)


def _write(connection: Connection, rows: Sequence[Row]) -> None:
    """Write rows. Raises ConfigurationError where the table is not there."""
    statement = insert(outbox_table)
    if connection.dialect.name == "postgresql":
        statement = statement.values(transaction_id=_XID)
    try:
        connection.execute(statement, rows)
    except DBAPIError as error:
        if is_missing_table(error.orig):
            raise missing(outbox_table, connection.engine) from None
        raise


def _around(savepoint: SessionTransaction) -> SessionTransaction:
    """Return the savepoint, or the transaction, that one is in."""
    outer = savepoint.parent
    while outer is not None and outer.parent is not None and not outer.nested:
        outer = outer.parent
    return savepoint if outer is None else outer


def _all(session: Session) -> list[Pending]:
    return [*session.info.get(_KEY, {}).values()]


def _connect(session: Session) -> Connection:
    """Return the connection to the outbox; it is asked before it commits, from now on."""
    connection: Connection | None = session.info.get(_CONNECTION)
    if connection is None:
        connection = session.info[_CONNECTION] = connection_to(outbox_table, session)
        _SESSIONS[connection] = ref(session)
    return connection


@events.listens_for(Session, "before_commit")
def _before_commit(session: Session) -> None:
    session.info[_COMMITTING] = True
    of_savepoint = session.get_nested_transaction() is not None  # or all, where it was left open
    if _all(session) and not of_savepoint:
        session.flush()
    if any(_all(session)):
        connection = _connect(session)
        if not of_savepoint:
            for each in _all(session):
                each.write(connection, session.get_transaction())


def _write_the_rest(connection: Connection, *_: object) -> None:
    """Write what the session has published by now whose transaction this connection commits."""
    found = _SESSIONS.get(connection)
    session = None if found is None else found()
    if session is not None and session.info.get(_CONNECTION) is connection:
        for each in _all(session):
            each.write(connection, session.get_transaction())


events.listen(Engine, "prepare_twophase", _write_the_rest)


@events.listens_for(Engine, "commit")
def _commit(connection: Connection) -> None:
    try:
        _write_the_rest(connection)
    except BaseException:
        # SQLAlchemy takes its transaction for ended by now, but the database has it still.
        connection.dialect.do_rollback(connection.connection)
        raise


@events.listens_for(Session, "after_commit")
def _after_commit(session: Session) -> None:
    savepoint, connection = session.get_nested_transaction(), session.info.get(_CONNECTION)
    session.info[_COMMITTED] = savepoint or session.get_transaction()
    if savepoint is not None:
        return
    if connection is not None and connection.in_transaction():  # somebody else's
        _write_the_rest(connection)
    for each in _all(session):
        each.wake()


@events.listens_for(Session, "after_transaction_end")
def _after_end(session: Session, transaction: SessionTransaction) -> None:
    is_committed = session.info.get(_COMMITTED) is transaction
    if is_committed:
        del session.info[_COMMITTED]
    if transaction.parent is None:
        session.info.pop(_COMMITTING, None)
        session.info.pop(_CONNECTION, None)
    for each in _all(session):
        each.end(transaction, is_committed=is_committed)
    if is_committed and any(_all(session)):  # of a savepoint, and be it in the midst of a commit
        _connect(session)


@events.listens_for(Engine, "savepoint")
def _savepoint(connection: Connection, _name: str | None) -> None:
    if connection.dialect.name == "sqlite" and not is_autocommit(connection):
        driver = connection.connection.driver_connection
        if driver is not None and not driver.in_transaction:
            connection.exec_driver_sql("BEGIN")
