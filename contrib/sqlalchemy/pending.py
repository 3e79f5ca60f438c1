"""What a session publishes, until its transaction has ended: written right before the commit.

1. What is published waits for the end of the innermost savepoint, or transaction, of the session. A
   savepoint that succeeds hands it on to the one around it. Where it ends otherwise, what it has
   published is dropped.
2. The rows are written when the first connection of the session is about to commit, or to prepare
   its commit: behind all that flushes and listeners have changed and published by then. A session's
   own ``before_commit`` would be too early for that, and does not tell the commit of all from that
   of a savepoint which was left open. There the session only connects to the outbox's database.
3. If they cannot be written, the commit fails, and the transaction has to be rolled back. (The
   database may have undone it by then, as at a deadlock: a second try would have events alone.)
4. A session that has joined a transaction of somebody else's does not commit that. It writes its
   rows when it is committed itself, or when that transaction is and the session is open still. From
   then on they are in that transaction, whatever becomes of it. If they cannot be written it
   raises, and has to be closed; whose transaction it is decides on that.
5. If a session has nothing in the outbox's database by then, the rows get a transaction of their
   own, after its commit.
6. After a commit the sender is told.

Nothing here talks to the database when an event is published: the caller may be a coroutine.

The listeners are on the class: SQLAlchemy ignores a listener that is added to a session while the
same event runs. They are inserted before others, since one that raises stops those behind it.

SQLite's drivers begin no transaction for a savepoint. One that comes first would be committed at
its release, before the rest of its transaction and without the events of that; so one is begun.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

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
from worker.contrib.sqlalchemy.parts import before_a_commit, ending_of, note, parts_of
from worker.contrib.sqlalchemy.tables import missing, outbox_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.orm import SessionTransaction

    from contrib.outbox.sender import Sender

    Row = dict[str, Any]

_XID = literal_column(XID, BigInteger)
#: Where a session has its Pending.
_KEY = "qworker_outbox"
_numbers = count()

_AFTER_THE_COMMIT = (
    "publish_on_commit was called after the commit of its session, as by a listener of"
    " after_commit: no commit comes that the event could leave with; call it before"
)
_ENDED = (
    "events of publish_on_commit are lost: their session has joined a transaction that was ended by"
    " whoever began it, before the commit of the session: commit sessions first"
)


class _Published(NamedTuple):
    """An event that is to be written."""

    #: Rises with each one.
    number: int
    sender: Sender | None
    row: Row


class Pending:
    """What one transaction of a session publishes, and where that is."""

    def __init__(self, whole: SessionTransaction) -> None:
        #: The outermost one.
        self.whole = whole
        #: What is to be written, by the transaction or savepoint that published it.
        self._waiting: dict[SessionTransaction, list[_Published]] = {}
        self._written: list[_Published] = []
        #: The transaction, or savepoint, that is committed and about to end.
        self._committed: SessionTransaction | None = None
        #: A commit has begun in it, be it of a savepoint; it may have failed.
        self.has_begun_to_commit = False
        #: A connection has begun to commit, or to prepare: nothing more can be published.
        self._is_sealed = False

    @classmethod
    def of(cls, session: Session) -> Pending:
        """Return that of the session's transaction, which is begun if need be."""
        whole = session.get_transaction() or session.begin()
        found: Pending | None = session.info.get(_KEY)
        # One of another transaction: its end was not told, or ``info`` is a copy.
        if found is None or found.whole is not whole:
            found = session.info[_KEY] = cls(whole)
        return found

    def add(self, session: Session, sender: Sender | None, row: Row) -> None:
        """Publish with the innermost savepoint, or transaction, that is open.

        Raises RuntimeError where the outermost one is committed, or prepared.
        """
        if self._is_sealed or self._committed is self.whole:
            raise RuntimeError(_AFTER_THE_COMMIT)
        innermost = session.get_nested_transaction() or self.whole
        published = _Published(next(_numbers), sender, row)
        self._waiting.setdefault(innermost, []).append(published)

    @property
    def has_waiting(self) -> bool:
        """Whether there is something to write, if it comes to that."""
        return bool(self._waiting)

    def seal(self, session: Session) -> None:
        """Write what waits, now that a connection commits, or prepares its commit."""
        if self._waiting:
            part = parts_of(session).get(bind_of(outbox_table, session).engine)
            if part is not None and part.is_open:
                published = self._all_waiting()
                _write(part.connection, published, before_commit=True)
                self._written += published
                self._waiting.clear()
        self._is_sealed = True

    def committed(self, session: Session) -> None:
        """Note that a savepoint, or all, is committed; then write the rest, and tell senders."""
        self._committed = ending_of(session)
        if self._committed is not self.whole:
            return
        published = self._all_waiting()
        self._waiting.clear()
        if published:
            self._write_after_the_commit(session, published)
        _wake(self._written)

    def _write_after_the_commit(self, session: Session, published: Sequence[_Published]) -> None:
        bind = bind_of(outbox_table, session)
        part = parts_of(session).get(bind.engine)
        if part is not None and not part.is_open:
            raise RuntimeError(_ENDED)
        place = bind if part is None else part.connection
        if isinstance(place, Connection) and place.in_transaction():
            _write(place, published)
            return  # who commits that tells no sender: the relay sends it
        with bind.engine.begin() as connection:
            _write(connection, published)
        self._written += published

    def rolled_back(self, session: Session) -> None:
        """Forget what was published in what is rolled back; its end may be told much later."""
        self._drop(ending_of(session) or self.whole)

    def _drop(self, transaction: SessionTransaction) -> list[_Published]:
        within = [each for each in self._waiting if _is_within(each, transaction)]
        return [published for each in within for published in self._waiting.pop(each)]

    def end(self, session: Session, transaction: SessionTransaction) -> None:
        """Hand on what a savepoint published; forget it where that was rolled back, or closed.

        Raises RuntimeError for what came after the outermost one was committed.
        """
        is_committed = self._committed is transaction
        if is_committed:
            self._committed = None
        if transaction is self.whole:
            del session.info[_KEY]
            if is_committed and self._waiting:
                raise RuntimeError(_AFTER_THE_COMMIT)
            return
        published = self._drop(transaction)
        if published and is_committed:
            self._waiting.setdefault(_around(transaction), []).extend(published)

    def _all_waiting(self) -> list[_Published]:
        # Whatever is left open in the whole is committed with it.
        return sorted(each for published in self._waiting.values() for each in published)


def _write(
    connection: Connection, published: Sequence[_Published], *, before_commit: bool = False
) -> None:
    """Write rows. Raises ConfigurationError where the table, or a transaction, is not there."""
    require_transactions(connection, outbox_table)
    statement = insert(outbox_table)
    if connection.dialect.name == "postgresql":
        statement = statement.values(transaction_id=_XID)
        if before_commit:
            # Deferred ones may wait for another transaction, whose events come first.
            connection.exec_driver_sql("SET CONSTRAINTS ALL IMMEDIATE")
    try:
        connection.execute(statement, [each.row for each in published])
    except DBAPIError as error:
        if is_missing_table(error.orig):
            raise missing(outbox_table, connection.engine) from None
        raise


def _wake(written: Sequence[_Published]) -> None:
    """Tell each sender which rows of its own are committed."""
    by_sender: dict[Sender, list[Row]] = defaultdict(list)
    for _, sender, row in written:
        if sender is not None:
            by_sender[sender].append(row)
    for sender, rows in by_sender.items():
        sender.wake(rows)


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


@events.listens_for(Session, "before_commit", insert=True)
def _before_commit(session: Session) -> None:
    pending = Pending.of(session)
    pending.has_begun_to_commit = True
    if pending.has_waiting:
        note(session, connection_to(outbox_table, session))


before_a_commit(lambda session: Pending.of(session).seal(session))


@events.listens_for(Session, "after_commit", insert=True)
def _after_commit(session: Session) -> None:
    Pending.of(session).committed(session)


@events.listens_for(Session, "after_rollback", insert=True)
def _after_rollback(session: Session) -> None:
    pending: Pending | None = session.info.get(_KEY)
    if pending is not None and pending.whole is session.get_transaction():
        pending.rolled_back(session)


@events.listens_for(Session, "after_transaction_end", insert=True)
def _after_end(session: Session, transaction: SessionTransaction) -> None:
    pending: Pending | None = session.info.get(_KEY)
    if pending is None or not _is_within(transaction, pending.whole):
        return
    pending.end(session, transaction)
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
