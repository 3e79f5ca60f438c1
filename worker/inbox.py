"""The transactional tier: the effect and the memory of its id are one transaction.

The dedup store alone cannot know whether a process that died between a handler's effect and its
record had the effect. A handler whose effect is a transaction of a database can: it writes the id
into the same transaction, and whoever runs the message again finds it there. (The *idempotent
receiver* of Hohpe and Woolf, *Enterprise Integration Patterns*, with its memory inside the effect.)

On SQLite the runtime does it (``Context.once``); for other databases an integration does, in the
block of ``Context.one_effect``.
"""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING

from worker.errors import AlreadyDone, Reject

if TYPE_CHECKING:
    from collections.abc import Iterator

_CREATE = """CREATE TABLE IF NOT EXISTS qworker_inbox (
    handler TEXT NOT NULL, message_id TEXT NOT NULL, at REAL NOT NULL,
    PRIMARY KEY (handler, message_id)) WITHOUT ROWID"""
#: By their names: a table that Django made has one more.
_INSERT = "INSERT OR IGNORE INTO qworker_inbox (handler, message_id, at) VALUES (?, ?, ?)"
#: By its time: another run may have written it, where the transaction of this one was undone.
_LOOK = "SELECT 1 FROM qworker_inbox WHERE handler = ? AND message_id = ? AND at = ?"
_PURGE = "DELETE FROM qworker_inbox WHERE at < ?"


class Effect:
    """The one transaction of a run that holds its effect and its id: a second one is rejected.

    Made for one run of a handler, and used by its thread.
    """

    __slots__ = (
        "_at",
        "_database",
        "_handler",
        "_is_begun",
        "_is_done",
        "_is_relay",
        "_message_id",
        "_place",
    )

    def __init__(self, handler: str, message_id: str, *, is_relay: bool = False) -> None:
        self._handler = handler
        self._message_id = message_id
        self._is_relay = is_relay
        #: What ``once`` was called with, and which database that is.
        self._database: sqlite3.Connection | None = None
        self._place: object = None
        #: When ``once`` wrote the id.
        self._at = 0.0
        #: The id was written, and not rolled back as far as is known here.
        self._is_begun = False
        #: The block of an integration has ended, and so its transaction is committed.
        self._is_done = False

    def once(self, connection: sqlite3.Connection) -> None:
        """Write the id into the transaction of ``connection``. Raises AlreadyDone, and Reject."""
        self._refuse_relay("context.once")
        place = _place_of(connection)
        if self._is_begun and place != self._place:
            raise Reject(_twice("context.once"))
        self._database, self._place = connection, place
        try:
            self._at = record(connection, self._handler, self._message_id)
        except AlreadyDone:
            if self._is_begun:  # by this very run, whose effect would pass for done
                raise Reject(_twice("context.once")) from None
            self._database = None  # the handler may go on: there is nothing of it to be committed
            raise
        self._is_begun = True

    @contextmanager
    def block(self, what: str) -> Iterator[None]:
        """Let the block be the transaction; one that raised may be tried again. Raises Reject."""
        self._refuse_relay(what)
        if self._is_begun:
            raise Reject(_twice(what))
        self._is_begun = True
        try:
            yield
        except BaseException:
            self._is_begun = False
            raise
        self._is_done = True

    def check_publishing(self) -> None:
        """Raise Reject where the effect has begun: a run that finds it done ends there.

        What is published from then on would be lost wherever this run does not come to its end.
        """
        if self._is_begun and not self._is_undone():
            raise Reject(
                f"{self._handler} calls context.publish in, or behind, the transaction that holds"
                " its effect: a second run ends where it finds that done, and would not publish it;"
                " call it before that, or publish on commit by an outbox"
            )

    def check_leaving(self) -> None:
        """Raise Reject where the effect is committed: what an outbox takes now would be lost too.

        In its transaction an outbox may have something, which is committed, or not, with it.
        """
        is_done = self._is_done or (
            self._database is not None
            and not _is_in_transaction(self._database)
            and self._is_recorded(self._database)
        )
        if is_done:
            raise Reject(
                f"{self._handler} calls publish_on_commit behind the transaction that holds its"
                " effect: a second run ends where it finds that done, and would not publish it;"
                " call it within that transaction"
            )

    def check_committed(self) -> None:
        """Raise RuntimeError where the transaction of ``once`` was not committed; roll it back.

        SQLite may have rolled it back before (at a full disk, say), while the handler went on.
        """
        if self._database is None:
            return
        is_open = _is_in_transaction(self._database)
        if is_open:
            self._database.rollback()
        if is_open or not self._is_recorded(self._database):
            raise RuntimeError(
                f"{self._handler} returned without a commit of the transaction of context.once: say"
                " 'with connection:', or connection.commit(), and let errors of SQLite through: it"
                " may roll back at one"
            )

    def roll_back(self) -> None:
        """End the transaction of ``once``, since the handler failed. Never raises.

        A connection that outlives the handler would keep it open: the next run would find its own
        id there, or the next message commit it.
        """
        if self._database is not None:
            with suppress(Exception):
                self._database.rollback()

    def _is_undone(self) -> bool:
        """Tell whether the transaction of ``once`` was rolled back: the handler may try again."""
        database = self._database
        if database is None or _is_in_transaction(database):
            return False
        return not self._is_recorded(database)

    def _is_recorded(self, database: sqlite3.Connection) -> bool:
        """Look for the id: by another connection where this one is closed, or another thread's."""
        row = self._handler, self._message_id, self._at
        try:
            return _is_there(database, row)
        except sqlite3.ProgrammingError:
            if not isinstance(self._place, str):
                return True  # in memory: nobody else sees it
            with closing(sqlite3.connect(self._place)) as another:
                return _is_there(another, row)

    def _refuse_relay(self, what: str) -> None:
        if self._is_relay:
            raise RuntimeError(
                f"{self._handler} is a relay and calls {what}: a second run would end there, before"
                " it returns what is to be published; use App.on, and context.publish before"
                f" {what}"
            )


def _twice(what: str) -> str:
    """Return why a message is rejected whose handler asks again."""
    return (
        f"{what} was called a second time; call it once for a message, and put all of the effect"
        " into that one transaction"
    )


def record(connection: sqlite3.Connection, handler: str, message_id: str) -> float:
    """Write (handler, id) into the transaction that ``connection`` is in; return the time of it.

    Begins one where none is open, and makes the table where there is none. Raises AlreadyDone
    where the id is there already; sqlite3.Error as sqlite3 does.
    """
    if not connection.in_transaction:
        connection.execute("BEGIN IMMEDIATE")
    connection.execute(_CREATE)
    now = time.time()
    if connection.execute(_INSERT, (handler, message_id, now)).rowcount == 0:
        connection.rollback()
        raise AlreadyDone(f"{handler} has done {message_id}")
    return now


def _place_of(connection: sqlite3.Connection) -> object:
    """Return what tells its database from others: the file; of one in memory, the connection."""
    for _, name, file in connection.execute("PRAGMA database_list"):
        if name == "main" and file:
            return file
    return connection


def _is_in_transaction(connection: sqlite3.Connection) -> bool | None:
    """Return whether it is; None where it is closed."""
    try:
        return connection.in_transaction
    except sqlite3.ProgrammingError:
        return None


def _is_there(connection: sqlite3.Connection, row: tuple[str, str, float]) -> bool:
    connection.execute(_CREATE)
    return connection.execute(_LOOK, row).fetchone() is not None


def purge(connection: sqlite3.Connection, older_than: float) -> int:
    """Forget ids recorded more than ``older_than`` seconds ago; return how many.

    Keep them as long as any message can come again: the retention of the dedup store, as long as
    dead letters may be replayed, and as far back as the archive is. Raises ValueError for an age
    that is not zero or more.
    """
    if not older_than >= 0:  # also where it is no number
        raise ValueError(f"older_than={older_than!r}: seconds, zero or more")
    with connection:
        connection.execute(_CREATE)
        return connection.execute(_PURGE, (time.time() - older_than,)).rowcount
