"""Which transactions of which connections a session has something in.

A session tells of its commits, and not what it commits: not whether it is the outermost one, nor
where. Its connections tell that: their events ``commit``, ``prepare_twophase`` and
``commit_twophase`` are the last before the database commits. From there one comes back to the
session by what is noted here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary, ref

from sqlalchemy import Engine
from sqlalchemy import event as events
from sqlalchemy.orm import Session

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection
    from sqlalchemy.engine import RootTransaction
    from sqlalchemy.orm import SessionTransaction

#: Where a session has its parts, with the transaction that they are of.
_KEY = "qworker_parts"
_SESSIONS: WeakKeyDictionary[Connection, list[ref[Session]]] = WeakKeyDictionary()
_listeners: list[Callable[[Session], None]] = []


class Part(NamedTuple):
    """What the transaction of a session has in one database."""

    connection: Connection
    #: The connection's own, which the session may only have joined.
    transaction: RootTransaction | None

    @property
    def is_open(self) -> bool:
        """Whether it is still the transaction of the connection. Savepoints are not looked at."""
        current = self.connection.get_transaction()
        return current is not None and current is self.transaction and current.is_active


def parts_of(session: Session) -> dict[Engine, Part]:
    """Return those of the session's transaction, by their engines."""
    whole, parts = session.info.get(_KEY, (None, {}))
    # Others are of a transaction whose end was not told, or of the session that ``info`` is from.
    return parts if whole is not None and whole is session.get_transaction() else {}


def before_a_commit(listener: Callable[[Session], None]) -> None:
    """Call ``listener`` with a session right before a connection of it commits, or prepares to.

    With a session that has several connections it is called for each. What it raises keeps the
    connection from committing, and undoes what it has. Listeners are called in the order in which
    they were given.
    """
    _listeners.append(listener)


def ending_of(session: Session) -> SessionTransaction | None:
    """Return the transaction, or savepoint, whose commit or rollback a session is telling.

    Others may be left open within it, so that it is not always the innermost one.
    """
    found = session.get_nested_transaction() or session.get_transaction()
    while found is not None and found.is_active and found.parent is not None:
        found = found.parent
    return found


def _tell(connection: Connection) -> None:
    for session in _sessions(connection):
        part = parts_of(session).get(connection.engine)
        if part is not None and part.is_open:
            for listener in _listeners:
                listener(session)


def _sessions(connection: Connection) -> list[Session]:
    found = (each() for each in _SESSIONS.get(connection, ()))
    return [session for session in found if session is not None]


def note(session: Session, connection: Connection) -> None:
    """Note that the session's transaction has something on this connection.

    For where that is not told: the transaction may be older than the import of this module.
    """
    parts = parts_of(session)
    if not parts:
        session.info[_KEY] = session.get_transaction(), parts
    # Told for each savepoint too: the first time counts.
    if connection.engine not in parts:
        parts[connection.engine] = Part(connection, connection.get_transaction())
        others = [each for each in _sessions(connection) if each is not session]
        _SESSIONS[connection] = [ref(each) for each in (*others, session)]


@events.listens_for(Session, "after_begin", insert=True)
def _after_begin(session: Session, _begun: SessionTransaction, connection: Connection) -> None:
    note(session, connection)


@events.listens_for(Session, "after_transaction_end")
def _after_end(session: Session, transaction: SessionTransaction) -> None:
    whole, parts = session.info.get(_KEY, (None, {}))
    if whole is transaction:
        del session.info[_KEY]
        for connection, _ in parts.values():
            others = [each for each in _sessions(connection) if each is not session]
            _SESSIONS[connection] = [ref(each) for each in others]


@events.listens_for(Engine, "commit")
def _commit(connection: Connection) -> None:
    try:
        _tell(connection)
    except BaseException:
        # SQLAlchemy takes the transaction for ended now, but the database has it still: whoever
        # uses the connection next would commit it.
        _undo(connection)
        raise


def _undo(connection: Connection) -> None:
    if not connection.invalidated:
        try:
            connection.dialect.do_rollback(connection.connection)
        except BaseException as error:
            connection.invalidate(error)
            if not isinstance(error, Exception):  # cancelled, or interrupted
                raise


@events.listens_for(Engine, "prepare_twophase")
def _prepare(connection: Connection, _xid: object) -> None:
    _tell(connection)


@events.listens_for(Engine, "commit_twophase")
def _commit_twophase(connection: Connection, _xid: object, is_prepared: object) -> None:
    if not is_prepared:
        try:
            _tell(connection)
        except BaseException as error:
            connection.invalidate(error)  # as above, and no plain rollback ends one of these
            raise
