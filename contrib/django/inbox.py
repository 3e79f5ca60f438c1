"""The transactional inbox: the id of the message is a row in the handler's own transaction.

1. ``transaction(context)`` begins a transaction, and inserts (handler, id). That is the claim: the
   database lets nobody else insert that row, and who tries waits until this transaction has ended.
2. Where the row is there already, the effect is too: AlreadyDone ends the handler, and the message
   counts as done.
3. The handler works with its models. An error rolls back all of it, the row too.
4. The end of the block asks whether it is in that transaction still, and commits: from then on
   effect and memory are one.

It is a durable ``transaction.atomic``: within another one the end of the block would commit
nothing, so that is an error. Django forbids ``commit`` and ``rollback`` in the block. What would
end it without an effect and without an error is refused at its end: a transaction that is marked
for a rollback (an error of the database was caught, and not in a block of its own) or that the
database has given up for one that Django did not mark (of a cursor, or a query that only reads: at
any error PostgreSQL, MySQL at a deadlock), and a connection that was closed. A ``COMMIT`` in SQL of
the handler's own is noticed by nobody.

The insert is the first statement. So a transaction of SQLite's begins as a writer's, and is never
refused later because it has read what another one has changed since.

Under PostgreSQL's REPEATABLE READ and SERIALIZABLE who has waited gets a serialization failure
instead of point 2: the handler fails, and finds the row at its next attempt.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from asgiref.sync import sync_to_async
from django.db import DatabaseError, connections, transaction
from worker.contrib.ages import age
from worker.contrib.django.connecting import missing, refresh
from worker.contrib.effects import CALL, one_effect
from worker.contrib.identity import plain
from worker.contrib.missing import is_missing_table

from worker import AlreadyDone, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from worker import Context

T = TypeVar("T")

_ROW = "INTO qworker_inbox (handler, message_id, at) VALUES (%s, %s, %s)"
#: Of PostgreSQL. What a block sets (a search path, a role) does not change it.
_TRANSACTION = "pg_current_xact_id()::text"
#: Inserts a row, or changes none where it is there; the count tells which.
_INSERT_IF_NEW = {
    "postgresql": f"INSERT {_ROW} ON CONFLICT DO NOTHING RETURNING {_TRANSACTION}",
    "sqlite": f"INSERT {_ROW} ON CONFLICT DO NOTHING",
    "mysql": f"INSERT IGNORE {_ROW}",  # and of MariaDB
}
#: By its time: another run may have inserted it, where the transaction of this one was undone.
_IS_THERE = "SELECT 1 FROM qworker_inbox WHERE handler = %s AND message_id = %s AND at = %s"
#: MySQL has no LIMIT in a subquery of IN, but in one of FROM.
_FORGET = (
    "DELETE FROM qworker_inbox WHERE (handler, message_id) IN (SELECT handler, message_id FROM"
    " (SELECT handler, message_id FROM qworker_inbox WHERE at < %s ORDER BY at LIMIT %s) AS oldest)"
)
#: Rows that a transaction of ``purge`` removes: locks and journals stay small.
_BATCH = 1000


class Inbox:
    """Gives handlers their transaction. Any thread may use it.

    ``using`` is the alias of the database that the effects are in. ::

        inbox = Inbox()

        @app.on(UserDeposited)
        def deposit(event: UserDeposited, context: Context) -> None:
            with inbox.transaction(context):
                Account.objects.filter(...).update(...)
    """

    def __init__(self, using: str = "default") -> None:
        self._using = using

    @contextmanager
    def transaction(self, context: Context) -> Iterator[None]:
        """Let the block be the effect of the message: committed at its end, once for ever.

        Raises AlreadyDone where it was committed before. Once for a message: a second call in a
        run rejects the message, but where the first was rolled back. Raises RuntimeError in a
        relay, within another transaction, and where the block leaves nothing to commit; and what
        Django raises. The connection is this thread's, closed before and after where it is broken
        or too old.
        """
        connection = connections[self._using]
        with one_effect(context):
            refresh(connection)
            try:
                _refuse_manual(connection, self._using)
                with transaction.atomic(self._using, durable=True):
                    mark = _record(connection, context)
                    yield
                    _check_effect(connection, context, mark)
            finally:
                refresh(connection)

    async def run(
        self, context: Context, effect: Callable[..., T], /, *args: Any, **options: Any
    ) -> T:
        """Call ``effect`` in the transaction, in a thread; return what it returns.

        For ``async def`` handlers: Django has no transactions in coroutines. One whose time is up
        cannot end the thread: what that one commits is found by the next attempt, which waits.
        """

        def call() -> T:
            with self.transaction(context):
                return effect(*args, **options)

        # Not the one thread that asgiref has for all: handlers would wait for each other.
        result: T = await sync_to_async(call, thread_sensitive=False)()
        return result

    def purge(self, older_than: float) -> int:
        """Forget ids recorded more than ``older_than`` seconds ago; return how many.

        Keep them as long as any message can come again: the retention of the dedup store, as long
        as dead letters may be replayed, and as far back as the archive is. Raises ValueError for an
        age that is not zero or more.
        """
        connection = connections[self._using]
        refresh(connection)
        before, removed = time.time() - age(older_than), 0
        while True:
            with transaction.atomic(self._using), connection.cursor() as cursor:
                cursor.execute(_FORGET, [before, _BATCH])
                batch: int = cursor.rowcount
            removed += batch
            if batch < _BATCH:
                return removed


def _refuse_manual(connection: Any, using: str) -> None:
    """Raise RuntimeError where the end of a block would not commit it."""
    if not connection.in_atomic_block and not connection.get_autocommit():
        raise RuntimeError(
            f"{CALL}: the database {using!r} has autocommit off, so the end of a block would"
            " commit nothing"
        )


def _record(connection: Any, context: Context) -> object:
    """Insert the row, or wait for who did and raise AlreadyDone.

    Returns what tells the transaction. Raises ConfigurationError where the table is not there.
    """
    statement = _INSERT_IF_NEW.get(connection.vendor)
    if statement is None:
        raise ConfigurationError(
            f"{CALL}: it is not known how to insert a row once in {connection.vendor}; there are"
            " PostgreSQL, MySQL, MariaDB and SQLite"
        )
    now = time.time()
    row = [*_key(context), now]
    try:
        with connection.cursor() as cursor:
            cursor.execute(statement, row)
            is_new = cursor.rowcount != 0
            mark = cursor.fetchone()[0] if is_new and cursor.description else now
    except DatabaseError as error:
        if is_missing_table(error.__cause__):
            raise missing("qworker_inbox", connection.alias) from None
        raise
    if not is_new:
        raise AlreadyDone(f"{context.handler} has done {context.message_id}")
    return mark


def _key(context: Context) -> list[str]:
    """Return what tells the row."""
    return [plain(context.handler), plain(context.memory_id)]


def _check_effect(connection: Any, context: Context, mark: object) -> None:
    """Raise RuntimeError where the block has ended well, and its end would commit nothing."""
    if connection.closed_in_transaction:
        raise RuntimeError(
            f"{context.handler}: the connection was closed within {CALL}, which ended its"
            " transaction: nothing of it is committed"
        )
    if connection.needs_rollback:
        raise RuntimeError(
            f"{context.handler}: the transaction of {CALL} has to be rolled back (set_rollback, or"
            " an error of the database that was caught): put what may fail into a"
            " transaction.atomic() of its own, and catch its error outside of that"
        )
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(f"SELECT {_TRANSACTION}")
            is_same = cursor.fetchone()[0] == mark
        else:
            cursor.execute(_IS_THERE, [*_key(context), mark])
            is_same = cursor.fetchone() is not None
        if not is_same:
            raise RuntimeError(
                f"{context.handler}: the transaction of {CALL} was ended within its block without"
                " a commit (by a rollback, or by the database, at a deadlock or a full disk): let"
                " the error through, or raise one, and the message is tried again"
            )
