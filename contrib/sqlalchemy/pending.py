"""What a session publishes, until its transaction has ended: written right before the commit.

1. What is published waits for the end of the transaction, or savepoint, that is the innermost one
   then. A savepoint that succeeds hands it on to the one around it; what ends otherwise takes it
   along.
2. The rows are written when the first connection of the session is about to commit, or to prepare
   its commit: behind all that flushes and listeners have changed and published by then. The
   session's own ``before_commit`` would be too early for that, and does not tell the commit of all
   from that of a savepoint which was left open. It is where the session connects to the outbox.
3. Where they cannot be written there is no commit: the transaction has to be rolled back. (The
   database may have undone it by then, as at a deadlock; a second try would have events alone.)
4. A session that has joined somebody else's transaction does not commit that. What it published it
   hands on to the session whose transaction that is. Where it is no session's the rows are written
   when this one is through; and so they are, in a transaction of their own, where nothing of the
   session was in the database of the outbox.
5. After a commit the sender is told.

Nothing here talks to the database when an event is published: the caller may be a coroutine.

Listeners are those of all sessions, since a session that is in the midst of an event takes no new
ones for it; and they come first, since one that raises keeps those behind it from being called. A
session that publishes nothing costs them an entry in two dictionaries.

SQLite's drivers begin no transaction for a savepoint. One that comes first would be committed at
its release, before the rest of its transaction and without the events of that; so one is begun.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary, ref

from sqlalchemy import BigInteger, Connection, Engine, insert, literal_column
from sqlalchemy import event as events
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from worker.contrib.missing import is_missing_table
from worker.contrib.outbox.postgres import XID
from worker.contrib.sqlalchemy.connecting import (
    bind_of,
    connection_to,
    is_autocommit,
    require_transactions,
)
from worker.contrib.sqlalchemy.tables import missing, outbox_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.engine import RootTransaction
    from sqlalchemy.orm import SessionTransaction

    from contrib.outbox.sender import Sender

    Row = dict[str, Any]

_XID = literal_column(XID, BigInteger)
#: Where a session has its Pending.
_KEY = "qworker_outbox"
#: The sessions that have something in the transaction of a connection, who began it first.
_SESSIONS: WeakKeyDictionary[Connection, list[ref[Session]]] = WeakKeyDictionary()

_numbers = count()

_AFTER_THE_COMMIT = (
    "publish_on_commit was called after the commit of its session, as by a listener of"
    " after_commit: no commit comes that the event could leave with; call it before"
)


class _Published(NamedTuple):
    """An event that is to be written."""

    #: Rises with each one.
    number: int
    sender: Sender | None
    row: Row


class _Part(NamedTuple):
    """What a session has in one database: the transaction may be one that it has joined."""

    connection: Connection
    transaction: RootTransaction | None

    @property
    def is_open(self) -> bool:
        """Whether that transaction is not over: somebody else may have ended it."""
        current = self.connection.get_transaction()
        return current is not None and current is self.transaction and current.is_active


class Pending:
    """What the transaction of one session publishes, and where it is."""

    def __init__(self, session: Session) -> None:
        self.session = ref(session)
        #: What is to be written, by the transaction or savepoint that published it.
        self._waiting: dict[SessionTransaction, list[_Published]] = {}
        self._written: list[_Published] = []
        self._parts: dict[Engine, _Part] = {}
        #: The transaction, or savepoint, that is committed and about to end.
        self._committed: SessionTransaction | None = None
        #: A commit has begun, of the transaction or of a savepoint; it may have failed.
        self.has_begun_to_commit = False
        #: The rows are written: the transaction takes no more.
        self._is_sealed = False

    @classmethod
    def of(cls, session: Session) -> Pending:
        """Return that of the session, made if need be."""
        found: Pending | None = session.info.get(_KEY)
        if found is None or found.session() is not session:  # its ``info`` is another one's
            found = session.info[_KEY] = cls(session)
        return found

    def add(self, session: Session, sender: Sender | None, row: Row) -> None:
        """Publish with the innermost transaction that is open; one is begun where none is.

        Raises RuntimeError where the outermost one is committed, or prepared.
        """
        begun = _innermost(session)
        if self._is_sealed or (begun is self._committed and begun.parent is None):
            raise RuntimeError(_AFTER_THE_COMMIT)
        self._waiting.setdefault(begun, []).append(_Published(next(_numbers), sender, row))

    @property
    def has_waiting(self) -> bool:
        """Whether there is something to write, if it comes to that."""
        return bool(self._waiting)

    def joins(self, session: Session, connection: Connection) -> None:
        """Note that something of the transaction is on this connection."""
        self._parts[connection.engine] = _Part(connection, connection.get_transaction())
        if session not in _sessions(connection):
            _SESSIONS.setdefault(connection, []).append(self.session)

    def seal(self, session: Session, connection: Connection) -> None:
        """Write what waits for the end of the whole transaction, which this connection commits."""
        part = self._parts.get(connection.engine)
        if part is None or not part.is_open:
            return
        if self._waiting:
            part = self._parts.get(bind_of(outbox_table, session).engine)
            if part is not None and part.is_open:
                self._write(part.connection, before_commit=True)
        self._is_sealed = True

    def commit(self, session: Session) -> None:
        """Note that a savepoint, or all, is committed; then write the rest, and tell senders."""
        committed = session.get_nested_transaction() or session.get_transaction()
        while committed is not None and committed.is_active:  # left open within it
            committed = committed.parent
        self._committed = committed
        if committed is None or committed.nested or not (self._waiting or self._written):
            return
        bind = bind_of(outbox_table, session)
        part = self._parts.get(bind.engine)
        place = bind if part is None else part.connection
        if part is not None and not part.is_open:
            self._waiting.clear()  # all was written, or somebody else has rolled it back
        elif isinstance(place, Engine):
            with place.begin() as connection:
                self._write(connection)
        elif others := [other for other in _sessions(place) if other is not session]:
            self._hand_on(Pending.of(others[-1]), _innermost(others[-1]))
            return
        elif place.in_transaction():
            self._write(place)
            return  # somebody is to commit it
        else:
            with place.begin():
                self._write(place)
        self._wake()

    def end(self, transaction: SessionTransaction) -> None:
        """Hand on what a savepoint published; forget it where that was rolled back, or closed.

        Raises RuntimeError for what came after the outermost one was committed.
        """
        is_committed = self._committed is transaction
        if is_committed:
            self._committed = None
        if transaction.parent is None:
            for part in self._parts.values():
                _SESSIONS[part.connection].remove(self.session)
            self._parts.clear()
            self._written = []
            self.has_begun_to_commit = self._is_sealed = False
            too_late = is_committed and self.has_waiting
            self._waiting.clear()
            if too_late:
                raise RuntimeError(_AFTER_THE_COMMIT)
        for each in [each for each in self._waiting if _is_within(each, transaction)]:
            rows = self._waiting.pop(each)
            if is_committed:
                self._waiting.setdefault(_around(transaction), []).extend(rows)

    def _hand_on(self, other: Pending, transaction: SessionTransaction) -> None:
        for rows in self._waiting.values():
            other._waiting.setdefault(transaction, []).extend(rows)
        self._waiting.clear()

    def _write(self, connection: Connection, *, before_commit: bool = False) -> None:
        # Whatever is left open in the whole is committed with it.
        published = sorted(each for waiting in self._waiting.values() for each in waiting)
        if published:
            _write(connection, [each.row for each in published], before_commit=before_commit)
            self._written += published
            self._waiting.clear()

    def _wake(self) -> None:
        by_sender: dict[Sender, list[Row]] = defaultdict(list)
        for _, sender, row in self._written:
            if sender is not None:
                by_sender[sender].append(row)
        for sender, rows in by_sender.items():
            sender.wake(rows)


def _write(connection: Connection, rows: Sequence[Row], *, before_commit: bool) -> None:
    """Write rows. Raises ConfigurationError where the table, or a transaction, is not there."""
    require_transactions(connection, outbox_table)
    statement = insert(outbox_table)
    if connection.dialect.name == "postgresql":
        statement = statement.values(transaction_id=_XID)
        if before_commit:
            # Deferred ones may wait for another transaction, whose events come first.
            connection.exec_driver_sql("SET CONSTRAINTS ALL IMMEDIATE")
    try:
        connection.execute(statement, rows)
    except DBAPIError as error:
        if is_missing_table(error.orig):
            raise missing(outbox_table, connection.engine) from None
        raise


def _sessions(connection: Connection) -> list[Session]:
    """Return those that have something in the transaction of this connection."""
    found = (each() for each in _SESSIONS.get(connection, ()))
    return [session for session in found if session is not None]


def _innermost(session: Session) -> SessionTransaction:
    """Return the savepoint, or the transaction, that is open; one is begun where none is."""
    return session.get_nested_transaction() or session.get_transaction() or session.begin()


def _is_within(inner: SessionTransaction, outer: SessionTransaction) -> bool:
    """Tell whether one is in the other, or is it."""
    found: SessionTransaction | None = inner
    while found is not None and found is not outer:
        found = found.parent
    return found is outer


def _around(savepoint: SessionTransaction) -> SessionTransaction:
    """Return the savepoint, or the transaction, that one is in."""
    outer = savepoint.parent
    while outer is not None and outer.parent is not None and not outer.nested:
        outer = outer.parent
    return savepoint if outer is None else outer


@events.listens_for(Session, "after_begin", insert=True)
def _after_begin(session: Session, _begun: SessionTransaction, connection: Connection) -> None:
    Pending.of(session).joins(session, connection)


@events.listens_for(Session, "before_commit", insert=True)
def _before_commit(session: Session) -> None:
    pending = Pending.of(session)
    pending.has_begun_to_commit = True
    if pending.has_waiting:
        connection_to(outbox_table, session)


@events.listens_for(Engine, "prepare_twophase")
def _prepare(connection: Connection, _xid: object) -> None:
    for session in _sessions(connection):
        Pending.of(session).seal(session, connection)


@events.listens_for(Engine, "commit")
def _commit(connection: Connection) -> None:
    try:
        for session in _sessions(connection):
            Pending.of(session).seal(session, connection)
    except BaseException:
        # SQLAlchemy takes its transaction for ended by now, but the database has it still.
        with suppress(Exception):  # the first error tells more
            if not connection.invalidated:
                connection.dialect.do_rollback(connection.connection)
        raise


@events.listens_for(Session, "after_commit", insert=True)
def _after_commit(session: Session) -> None:
    Pending.of(session).commit(session)


@events.listens_for(Session, "after_transaction_end", insert=True)
def _after_end(session: Session, transaction: SessionTransaction) -> None:
    pending = Pending.of(session)
    pending.end(transaction)
    is_flush = transaction.parent is not None and not transaction.nested
    if is_flush and pending.has_begun_to_commit and pending.has_waiting and session.is_active:
        # What it has published may be the first, and no other call comes that could connect.
        connection_to(outbox_table, session)


@events.listens_for(Engine, "savepoint")
def _savepoint(connection: Connection, _name: str | None) -> None:
    if connection.dialect.name == "sqlite" and not is_autocommit(connection):
        driver = connection.connection.driver_connection
        if driver is not None and not driver.in_transaction:
            connection.exec_driver_sql("BEGIN")
