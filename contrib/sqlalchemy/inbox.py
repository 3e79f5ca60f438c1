"""The transactional inbox: the id of the message is a row in the handler's own transaction.

1. ``transaction(context)`` begins a transaction, and inserts (handler, id). That is the claim: the
   database lets nobody else insert that row, and who tries waits until this transaction has ended.
2. Where the row is there already, the effect is too: AlreadyDone ends the handler, and the message
   counts as done.
3. The handler works with the session. An error rolls back all of it, the row too.
4. The commit, at the end of the block or by the handler itself, first asks whether it is of that
   transaction still: from then on effect and memory are one. It is the connection that asks, when
   all listeners and flushes of the session are through.
5. Behind the block it was committed, or an error comes: a session whose flush has failed is closed
   without either.

The transaction may be gone by then, though the handler has seen no error, or passed over one: MySQL
undoes that of who is chosen to end a deadlock, and SQLite that of who meets a full disk, and both
take what comes next for another one. So they are asked for the row, and by its time, since another
run may have inserted it meanwhile. PostgreSQL, asked to commit after a statement that failed, rolls
back and raises nothing; asked for the number of the transaction, it raises.

So no crash, no stale owner of a claim and no second delivery makes the effect happen twice, as long
as all of it is in that database. It is as durable as a commit of that database is.

Under PostgreSQL's REPEATABLE READ and SERIALIZABLE who has waited gets a serialization failure
instead of point 2: the handler fails, and finds the row at its next attempt.
"""

from __future__ import annotations

import time
from asyncio import CancelledError
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from weakref import ref

from sqlalchemy import Text, bindparam, delete, insert, literal_column, select, tuple_
from sqlalchemy import event as events
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker
from worker.contrib.ages import age
from worker.contrib.effects import one_effect
from worker.contrib.identity import plain
from worker.contrib.missing import is_missing_table
from worker.contrib.sqlalchemy.connecting import bind_of, connection_to
from worker.contrib.sqlalchemy.parts import before_a_commit, ending_of, parts_of
from worker.contrib.sqlalchemy.tables import inbox_table, missing

from worker import AlreadyDone, ConfigurationError, Reject

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from sqlalchemy import Connection, Insert
    from sqlalchemy.orm import SessionTransaction

    from worker import Context

S = TypeVar("S", bound=Session)
A = TypeVar("A", bound=AsyncSession)

_IN_PARTS = (
    "the transaction of inbox.transaction was ended within its block by a commit, and what came"
    " after that failed: put all of the effect into the block, and leave the commit to its end"
)
_IN_DOUBT = (
    "the transaction of inbox.transaction was being committed within its block when the handler's"
    " time, or the connection, was over: it may be committed, without what comes after that; put"
    " all of the effect into the block, and leave the commit to its end"
)
_UNDONE = (
    "the transaction of inbox.transaction was ended within its block without a commit (by a"
    " rollback, by a flush that failed, or by the database, at a deadlock or a full disk), so that"
    " its effect is lost: let the error through, or raise one, and the message is tried again"
)
#: Where a session of ours has whether its transaction was committed; kept behind the block by those
#: that nobody else is given.
_KEY = "qworker_inbox_committed"
#: Where it has, until the block ends, what tells the row and the transaction it was inserted in.
_CLAIM = "qworker_inbox_claim"
_IS_THERE = select(1).where(
    inbox_table.c.handler == bindparam("handler"),
    inbox_table.c.message_id == bindparam("message_id"),
    inbox_table.c.at == bindparam("at"),
)
#: Of PostgreSQL. What a block sets (a search path, a role) does not change it.
_TRANSACTION = literal_column("pg_current_xact_id()::text", Text)
#: Rows that a transaction of ``purge`` removes: locks and journals stay small.
_BATCH = 1000


@dataclass(slots=True)
class _Claim:
    """The row of a message, and the transaction that it was inserted in."""

    #: Whose it is: others may have a copy of the ``info`` that it is kept in.
    session: ref[Session]
    row: dict[str, Any]
    #: PostgreSQL's number of that; others are asked for the row.
    transaction: str | None
    #: The transaction of the session that was about to be committed, and found to be that one.
    asked_for: SessionTransaction | None = None

    def is_in(self, connection: Connection) -> bool:
        """Ask whether the transaction of the connection is that one."""
        if connection.dialect.name == "postgresql":
            return bool(connection.scalar(select(_TRANSACTION)) == self.transaction)
        return connection.scalar(_IS_THERE, self.row) is not None


class Inbox(Generic[S]):
    """Gives handlers their transaction. Any thread may use it.

    ``sessions`` makes a session: a ``sessionmaker``. Raises ConfigurationError for what makes none,
    as an engine. ::

        inbox = Inbox(sessionmaker(engine))

        @app.on(UserDeposited)
        def deposit(event: UserDeposited, context: Context) -> None:
            with inbox.transaction(context) as session:
                session.execute(update(Account)...)
    """

    def __init__(self, sessions: Callable[[], S]) -> None:
        _check_maker(sessions, Session, "Inbox(sessionmaker(engine))")
        self._sessions = sessions

    @contextmanager
    def transaction(self, context: Context) -> Iterator[S]:
        """Let the block be the effect of the message: committed at its end, once for ever.

        Raises AlreadyDone where it was committed before. Once for a message: a second call in a
        run rejects the message, but where the first was rolled back. Raises RuntimeError in a
        relay, once the handler has ended, and where the block has left nothing to commit; and what
        SQLAlchemy raises.
        """
        with (
            one_effect(context),
            self._sessions() as session,
            _lent(session, self._sessions),
            _committed(session),
            session.begin(),
            _in_one_part(session),
        ):
            _record(session, context)
            yield session

    def purge(self, older_than: float) -> int:
        """Forget ids recorded more than ``older_than`` seconds ago; return how many.

        Keep them as long as any message can come again: the retention of the dedup store, as long
        as dead letters may be replayed, and as far back as the archive is. Raises ValueError for an
        age that is not zero or more.
        """
        before, removed = time.time() - age(older_than), 0
        while True:
            with self._sessions() as session, session.begin():
                batch = _forget(session, before)
            removed += batch
            if batch < _BATCH:
                return removed


class AsyncInbox(Generic[A]):
    """The same for ``async def`` handlers: ``AsyncInbox(async_sessionmaker(engine))``."""

    def __init__(self, sessions: Callable[[], A]) -> None:
        _check_maker(sessions, AsyncSession, "AsyncInbox(async_sessionmaker(engine))")
        self._sessions = sessions

    @asynccontextmanager
    async def transaction(self, context: Context) -> AsyncIterator[A]:
        """Let the block be the effect of the message, as :meth:`Inbox.transaction` does."""
        with one_effect(context):
            async with self._sessions() as session:
                plain_session = session.sync_session
                with _lent(plain_session, self._sessions), _committed(plain_session):
                    async with session.begin():
                        with _in_one_part(plain_session):
                            await session.run_sync(_record, context)
                            yield session

    async def purge(self, older_than: float) -> int:
        """Forget ids, as :meth:`Inbox.purge` does."""
        before, removed = time.time() - age(older_than), 0
        while True:
            async with self._sessions() as session, session.begin():
                batch = await session.run_sync(_forget, before)
            removed += batch
            if batch < _BATCH:
                return removed


def _check_maker(sessions: object, kind: type, example: str) -> None:
    """Raise ConfigurationError where this is known to make no sessions of the kind."""
    factory = getattr(sessions, "session_factory", sessions)  # a registry has one
    made = getattr(factory, "class_", kind)
    if not callable(sessions) or not issubclass(made, kind):
        raise ConfigurationError(
            f"an inbox is given what makes its sessions, as in {example}, and not this"
            f" {type(sessions).__name__}"
        )


def _record(session: Session, context: Context) -> None:
    """Insert the row, or wait for who did and raise AlreadyDone.

    Raises ConfigurationError where the table is not there.
    """
    connection = connection_to(inbox_table, session)
    row = {**_key(context), "at": time.time()}
    statement = insert_if_new(connection.dialect.name)
    try:
        result = connection.execute(statement, row)
    except DBAPIError as error:
        if is_missing_table(error.orig):
            raise missing(inbox_table, connection.engine) from None
        raise
    if result.rowcount == 0:
        raise AlreadyDone(f"{context.handler} has done {context.message_id}")
    session.info[_CLAIM] = _Claim(
        ref(session), row, result.scalar_one() if result.returns_rows else None
    )


def _key(context: Context) -> dict[str, str]:
    """Return what tells the row."""
    return {"handler": plain(context.handler), "message_id": plain(context.memory_id)}


def _ask(session: Session) -> None:
    """Raise where what is about to be committed is not what the row was inserted in."""
    claim: _Claim | None = session.info.get(_CLAIM)
    if claim is None or claim.session() is not session or is_over(session):
        return
    if claim.asked_for is session.get_transaction():
        return
    part = parts_of(session).get(bind_of(inbox_table, session).engine)
    if part is None or not claim.is_in(part.connection):
        raise RuntimeError(_UNDONE)
    claim.asked_for = session.get_transaction()


before_a_commit(_ask)


@cache
def insert_if_new(dialect: str) -> Insert:
    """Return the statement that inserts a row, or changes none where it is there."""
    # The count of an INSERT is kept for who asks for it.
    options = {"preserve_rowcount": True}
    match dialect:
        case "postgresql":
            upsert = postgresql.insert(inbox_table).on_conflict_do_nothing()
            return upsert.returning(_TRANSACTION).execution_options(**options)
        case "sqlite":
            return sqlite.insert(inbox_table).on_conflict_do_nothing().execution_options(**options)
        case "mysql" | "mariadb":
            return insert(inbox_table).prefix_with("IGNORE").execution_options(**options)
    raise ConfigurationError(
        f"inbox.transaction: it is not known how to insert a row once in {dialect}; there are"
        " PostgreSQL, MySQL, MariaDB and SQLite"
    )


def _forget(session: Session, before: float) -> int:
    """Remove up to a batch of old rows, the oldest first; return how many."""
    connection = session.connection(bind_arguments={"clause": inbox_table})
    columns = inbox_table.c.handler, inbox_table.c.message_id
    oldest = (
        select(*columns)
        .where(inbox_table.c.at < before)
        .order_by(inbox_table.c.at)
        .limit(_BATCH)
        .subquery()
    )
    # MySQL has no LIMIT in a subquery of IN, but in one of FROM.
    return connection.execute(
        delete(inbox_table).where(tuple_(*columns).in_(select(oldest)))
    ).rowcount


@contextmanager
def _in_one_part(session: Session) -> Iterator[None]:
    """Reject a message whose handler failed after a commit of its own: the rest would be lost.

    So would it be where it failed in that commit, and nobody knows whether it is one.
    """
    session.info[_KEY] = False
    try:
        yield
    except (AlreadyDone, GeneratorExit):
        raise
    except BaseException as error:  # SystemExit, say, or that a coroutine's time is over
        if session.info[_KEY]:
            raise Reject(_IN_PARTS) from error
        claim: _Claim | None = session.info.get(_CLAIM)
        cut_off = isinstance(error, CancelledError) or (
            isinstance(error, DBAPIError) and error.connection_invalidated
        )
        if claim is not None and claim.asked_for is not None and cut_off:
            raise Reject(_IN_DOUBT) from error
        raise


@contextmanager
def _committed(session: Session) -> Iterator[None]:
    """Raise RuntimeError where the block has ended without an error, and without a commit."""
    yield
    if not is_over(session):
        raise RuntimeError(_UNDONE)


@contextmanager
def _lent(session: Session, sessions: object) -> Iterator[None]:
    """Let a session be anybody's again behind the block, where ``sessions`` may give it again."""
    try:
        yield
    finally:
        session.info.pop(_CLAIM, None)
        if not isinstance(sessions, sessionmaker | async_sessionmaker):
            session.info.pop(_KEY, None)


def is_over(session: Session) -> bool:
    """Tell whether the transaction that an inbox gave with this session is committed."""
    return bool(session.info.get(_KEY))


@events.listens_for(Session, "after_commit")
def _after_commit(session: Session) -> None:
    if _KEY in session.info and ending_of(session) is session.get_transaction():
        _ask(session)  # where it has joined somebody else's transaction
        session.info[_KEY] = True
