"""One SQLite connection: transactions, whether others changed something, errors as AMQP has them.

Every write is an IMMEDIATE transaction, so it never fails half-way for want of the write lock.
SQLite's own waiting is kept short and is repeated here up to ``patience`` seconds: its back-off
grows to 100 ms, which would starve one of several busy processes.

*Durable* transactions are on the disk when they return (``synchronous=FULL``). The others survive
a crash of any process but may be forgotten in a power cut, never in the middle: the log is a
sequence, and what is durable makes all before it durable too (SQLite, "Write-Ahead Logging").
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from amqp import exceptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

_T = TypeVar("_T")

#: UPDATE … RETURNING came with it.
_OLDEST_SQLITE = (3, 35)
_STATEMENTS = 256
#: What SQLite itself waits for a lock, in milliseconds, before it is asked again.
_BUSY_TIMEOUT_MS = 5
#: Half the work of a page of 4096 for messages of some hundred bytes, at no cost for one alone.
_PAGE_BYTES = 8192
_CACHE_KIB = 16 * 1024
#: The log shrinks back to this after a burst.
_LOG_BYTES = 64 * 1024 * 1024

_RECOVERABLE = {
    sqlite3.SQLITE_BUSY: "another process keeps it locked",
    sqlite3.SQLITE_LOCKED: "another process keeps it locked",
    sqlite3.SQLITE_FULL: "the disk is full; make room",
    sqlite3.SQLITE_IOERR: "the disk failed to read or write",
    sqlite3.SQLITE_NOMEM: "there is not enough memory",
    sqlite3.SQLITE_PROTOCOL: "its lock was contended for too long",
}
_REFUSED = {
    sqlite3.SQLITE_READONLY: "the file, or its folder, is read-only",
    sqlite3.SQLITE_PERM: "the file may not be accessed",
    sqlite3.SQLITE_AUTH: "the file may not be accessed",
    sqlite3.SQLITE_CANTOPEN: "the file cannot be opened; its folder must exist and be writable",
}
_BROKEN = {
    sqlite3.SQLITE_CORRUPT: "the file is damaged; set it aside, or restore it",
    sqlite3.SQLITE_NOTADB: "the file is no SQLite database; name another one",
}


class Database:
    """One SQLite connection, used by one thread at a time, or by several under ``lock``."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        name: str,
        *,
        patience: float,
        lock: AbstractContextManager[Any] | None = None,
    ) -> None:
        self._connection = connection
        self.name = name
        self._patience = patience
        self._lock = lock or nullcontext()
        self._durable: bool | None = None
        self._commits = 0
        #: Within the block of ``together``.
        self._is_together = False

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[Any]:
        """Return the rows of one statement that reads, outside of any transaction."""
        try:
            with self._lock:
                return self._patiently(lambda: self._connection.execute(sql, parameters).fetchall())
        except sqlite3.Error as error:
            raise self._translated(error) from error

    @contextmanager
    def transaction(self, *, durable: bool = False) -> Iterator[sqlite3.Connection]:
        """Run the block in one write transaction; all of it happens or, on any error, nothing.

        Raises a recoverable amqp ConnectionError where trying again can help (locked, disk
        full), an irrecoverable one where it cannot (read-only, damaged).
        """
        with self._lock:
            connection = self._connection
            if self._is_together:
                with self._part():
                    yield connection
                return
            try:
                self.check()
                self._set_durable(durable)
                try:
                    self._patiently(lambda: connection.execute("BEGIN IMMEDIATE"))
                    yield connection
                    connection.execute("COMMIT")
                    self._commits += 1
                except BaseException:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                raise self._translated(error) from error

    @contextmanager
    def together(self) -> Iterator[None]:
        """Make all transactions of the block one, which is durable: all of them happen, or none.

        Where one of them raises, and the block goes on, that one alone did not happen.
        """
        with self.transaction(durable=True):
            self._is_together = True
            try:
                yield
            finally:
                self._is_together = False
                self._commits += 1  # also where what was seen of it is undone

    @contextmanager
    def _part(self) -> Iterator[None]:
        execute = self._connection.execute
        try:
            execute("SAVEPOINT part")
            try:
                yield
            except BaseException:
                if self._connection.in_transaction:  # not where SQLite has given up all of it
                    execute("ROLLBACK TO part")
                    execute("RELEASE part")
                raise
            execute("RELEASE part")
            self._commits += 1
        except sqlite3.Error as error:
            raise self._translated(error) from error

    def version(self) -> tuple[int, int]:
        """Return what differs from the last answer if anybody wrote since. Costs microseconds."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of the database."""
        self._connection.close()

    def check(self) -> None:
        """Raise a recoverable amqp ConnectionError where a commit would be worth nothing."""

    def _set_durable(self, durable: bool) -> None:  # noqa: FBT001 - private
        if durable != self._durable:
            level = "FULL" if durable else "NORMAL"
            self._connection.execute("PRAGMA synchronous=" + level)
            self._durable = durable

    def _patiently(self, attempt: Callable[[], _T]) -> _T:
        """Repeat ``attempt`` while the database is locked, up to the patience."""
        deadline: float | None = None
        while True:
            try:
                return attempt()
            except sqlite3.OperationalError as error:
                if _primary_code(error) != sqlite3.SQLITE_BUSY:
                    raise
                now = time.monotonic()
                if deadline is None:
                    deadline = now + self._patience
                elif now >= deadline:
                    raise

    def _translated(self, error: sqlite3.Error) -> exceptions.ConnectionError:
        return broker_error(error, self.name)


class FileDatabase(Database):
    """A database file in WAL mode, shared with other processes. One thread at a time."""

    def __init__(self, path: Path, *, patience: float) -> None:
        """Open ``path``, absolute; creates the file, readable by its owner only.

        Raises an irrecoverable amqp ConnectionError where it cannot be used.
        """
        name = str(path)
        if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
            needed = ".".join(map(str, _OLDEST_SQLITE))
            raise exceptions.NotAllowed(
                f"Python's SQLite is {sqlite3.sqlite_version}; the embedded broker needs {needed}"
            )
        _create(path)
        try:
            connection = sqlite3.connect(
                f"{path.as_uri()}?mode=rw",
                uri=True,
                isolation_level=None,
                check_same_thread=False,
                cached_statements=_STATEMENTS,
                timeout=_BUSY_TIMEOUT_MS / 1000,
            )
        except sqlite3.Error as error:
            raise broker_error(error, name) from error
        super().__init__(connection, name, patience=patience)
        try:
            self._identity = self._identify()
            self._configure()
        except sqlite3.Error as error:
            connection.close()
            raise self._translated(error) from error
        except BaseException:
            connection.close()
            raise

    def version(self) -> tuple[int, int]:
        """Return what differs from the last answer if anybody wrote since. Costs microseconds."""
        try:
            (others,) = self._connection.execute("PRAGMA data_version").fetchone()
        except sqlite3.Error as error:
            raise self._translated(error) from error
        return others, self._commits

    def _configure(self) -> None:
        execute = self._connection.execute
        execute(f"PRAGMA page_size={_PAGE_BYTES}")
        (mode,) = self._patiently(lambda: execute("PRAGMA journal_mode=WAL").fetchone())
        if mode != "wal":
            raise exceptions.NotAllowed(
                f"{self.name}: its file system cannot share memory between processes, which the"
                " embedded broker needs (a network file system?); put it on a local disk"
            )

        def set_pragma(pragma: str) -> None:
            execute("PRAGMA " + pragma).fetchall()

        for pragma in (
            f"cache_size=-{_CACHE_KIB}",
            f"journal_size_limit={_LOG_BYTES}",
            "fullfsync=ON",  # macOS: what fsync alone wrote may still be in the drive's cache
            "checkpoint_fullfsync=ON",
            "secure_delete=OFF",
            "temp_store=MEMORY",
        ):
            self._patiently(partial(set_pragma, pragma))

    def _identify(self) -> tuple[int, int] | None:
        try:
            status = os.stat(self.name)  # noqa: PTH116 - it is asked for with every commit
        except OSError:
            return None
        return status.st_dev, status.st_ino

    def check(self) -> None:
        """Raise a recoverable amqp ConnectionError where the file is no longer at its place."""
        # A file that was removed or replaced can still be written to by those who have it open;
        # what they store is gone when they close it. So nothing may be confirmed there.
        if self._identify() != self._identity:
            raise exceptions.ResourceError(f"{self.name}: the file was removed or replaced")


class MemoryDatabase(Database):
    """A database in this process's memory, shared by its threads under a lock."""

    def __init__(self, name: str) -> None:
        connection = sqlite3.connect(
            ":memory:",
            isolation_level=None,
            check_same_thread=False,
            cached_statements=_STATEMENTS,
        )
        # SQLite has no durability to give here; saying so once saves the pragma each time.
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute("PRAGMA journal_mode=MEMORY")
        super().__init__(connection, name, patience=0.0, lock=threading.RLock())

    def version(self) -> tuple[int, int]:
        """Return what differs from the last answer if anybody wrote since. Costs microseconds."""
        try:
            return self._connection.total_changes, self._commits
        except sqlite3.Error as error:
            raise self._translated(error) from error

    def close(self) -> None:
        """Do nothing: the database is shared, and outlives its connections."""

    def forget(self) -> None:
        """Drop the database; whoever still uses it finds it closed."""
        with self._lock:
            self._connection.close()

    def _set_durable(self, durable: bool) -> None:  # noqa: FBT001 - private
        pass


def broker_error(error: sqlite3.Error, name: str) -> exceptions.ConnectionError:
    """Return the amqp error that says what happened to the database ``name``, and what to do."""
    code = _primary_code(error)
    if code in _RECOVERABLE:
        return exceptions.ResourceError(f"{name}: {_RECOVERABLE[code]} ({error})")
    if code in _REFUSED:
        return exceptions.NotAllowed(f"{name}: {_REFUSED[code]} ({error})")
    if code in _BROKEN:
        return exceptions.InternalError(f"{name}: {_BROKEN[code]} ({error})")
    if isinstance(error, sqlite3.ProgrammingError):
        return exceptions.RecoverableConnectionError(f"{name}: the connection is closed ({error})")
    return exceptions.InternalError(f"{name}: {error}")


def _primary_code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _create(path: Path) -> None:
    """Create the file if there is none. Its log and index inherit its permissions from it.

    A file that exists is left alone, and must be: closing any descriptor of it would drop the
    locks that this process holds on it (SQLite, "How To Corrupt An SQLite Database File").
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        if path.is_dir():
            raise exceptions.NotAllowed(f"{path}: is a folder; name a file in it") from None
    except OSError as error:
        raise exceptions.NotAllowed(f"{path}: cannot be created: {error.strerror}") from error
