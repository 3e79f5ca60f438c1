"""What a connection publishes, until its transaction has ended: written right before the commit.

1. What is published is registered by ``on_commit``. So it is Django that keeps the books: a
   savepoint that is rolled back takes along what was published since, a rollback takes all, and so
   does a connection that is closed.
2. When the transaction is about to commit, what is still registered is written, as its last
   statement. Of that Django tells nobody: the connection's ``commit``, which the outermost
   ``atomic`` calls, is wrapped for it, in each connection that publishes, at its first time. On
   PostgreSQL constraints are checked first. Those of Django's foreign keys are deferred to the
   commit, where the check may have to wait for another transaction.
3. After the commit the senders are told. Django then calls what was registered, which has nothing
   left to do; so no callback of somebody else that raises keeps an event back.

In a ``TestCase`` no transaction commits, and so nothing is written. There Django's
``captureOnCommitCallbacks(execute=True)`` calls what was registered, and what finds itself not
written is sent at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.db import DatabaseError, Error
from django.db.transaction import TransactionManagementError
from worker.contrib.django.connecting import missing
from worker.contrib.missing import is_missing_table
from worker.contrib.outbox import columns_of
from worker.contrib.outbox.postgres import XID

from worker import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from contrib.outbox.sender import Sender
    from worker import App, Outgoing

#: Where a connection has what it publishes.
_KEY = "_qworker_pending"
#: Those of which it is known when a row may be sent (:mod:`worker.contrib.django.rows`).
_KNOWN = ("postgresql", "sqlite", "mysql")


class Published:
    """A message that leaves with a transaction; what ``on_commit`` is given."""

    __slots__ = ("_app", "is_written", "outgoing", "row", "sender")

    def __init__(self, app: App, outgoing: Outgoing, sender: Sender | None) -> None:
        self._app = app
        self.outgoing = outgoing
        self.row = columns_of(app.name, outgoing)
        #: Who sends it at once.
        self.sender = sender
        #: Its row is committed.
        self.is_written = False

    def __call__(self) -> None:
        """Send it where no transaction did: a test has called what is registered."""
        if not self.is_written:
            with self._app.publisher() as out:
                out.send(self.outgoing)

    def __repr__(self) -> str:
        return f"<{self.row['name']} {self.outgoing.message_id} on commit>"


class Pending:
    """What the transactions of one connection publish. For the thread of the connection."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._commit = connection.commit

    @classmethod
    def of(cls, connection: Any) -> Pending:
        """Return that of the connection; its first call wraps ``connection.commit``.

        Raises ConfigurationError for a database whose commits have no order that is known.
        """
        known: Pending | None = getattr(connection, _KEY, None)
        if known is None:
            if connection.vendor not in _KNOWN:
                raise ConfigurationError(
                    f"publish_on_commit: it is not known in which order {connection.vendor}"
                    " commits; there are PostgreSQL, MySQL, MariaDB and SQLite"
                )
            known = cls(connection)
            setattr(connection, _KEY, known)
            connection.commit = known.commit
        return known

    def add(self, published: Published) -> None:
        """Publish with the transaction, or the savepoint, that is open.

        Raises TransactionManagementError where none is: nothing would hold event and data together.
        So it is on SQLite where autocommit is off: its driver begins no transaction for the
        savepoint that an ``atomic`` is then, whose end commits the data before the event is there.
        """
        if not self._connection.in_atomic_block:
            raise TransactionManagementError(
                "publish_on_commit needs a transaction, which the event leaves with: put it, and"
                " what it tells of, into one transaction.atomic()"
            )
        if self._connection.vendor == "sqlite" and not self._connection.commit_on_exit:
            raise TransactionManagementError(
                "publish_on_commit: the database has autocommit off, and on SQLite the end of an"
                " atomic block then commits what it did, and not the event: leave autocommit on"
            )
        self._connection.on_commit(published)

    def commit(self) -> None:
        """Write what is published, commit, and tell who sends it."""
        waiting = self._waiting()
        if waiting:
            try:
                self._write(waiting)
            except DatabaseError:
                raise  # and rolled back by who called
            except BaseException:
                self._roll_back()
                raise
        self._commit()
        if waiting:
            self._tell(waiting)

    def _waiting(self) -> list[Published]:
        """Return what no rollback has taken along, and no earlier commit has written."""
        registered = (entry[1] for entry in self._connection.run_on_commit)
        return [p for p in registered if isinstance(p, Published) and not p.is_written]

    def _write(self, waiting: Sequence[Published]) -> None:
        """Write their rows. Raises ConfigurationError where the table is not there."""
        rows = [published.row for published in waiting]
        vendor, quoted = self._connection.vendor, self._connection.ops.quote_name
        columns, values = [*rows[0]], ["%s"] * len(rows[0])
        if vendor == "mysql":  # a body is no text of the connection's character set
            values[columns.index("body")] = "_binary %s"
        if vendor == "postgresql":
            columns, values = ["transaction_id", *columns], [XID, *values]
        names = ", ".join(map(quoted, columns))
        statement = f"INSERT INTO qworker_outbox ({names}) VALUES ({', '.join(values)})"
        with self._connection.cursor() as cursor:
            if vendor == "postgresql":
                cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
            try:
                cursor.executemany(statement, [[*row.values()] for row in rows])
            except DatabaseError as error:
                if is_missing_table(error.__cause__):
                    raise missing("qworker_outbox", self._connection.alias) from None
                raise

    def _tell(self, waiting: Sequence[Published]) -> None:
        """Let what is committed leave."""
        for published in waiting:
            published.is_written = True
        for sender in {p.sender for p in waiting if p.sender is not None}:
            sender.wake(p.row for p in waiting if p.sender is sender)

    def _roll_back(self) -> None:
        """Do what Django does where an error of the database keeps it from a commit."""
        try:
            self._connection.rollback()
        except Error:
            self._connection.close()
