"""One SQLite file that several stores may share: transactions, and errors that say what to do.

The file may be the one of the embedded broker too, so every store names its tables after itself
and keeps the version of its layout in a row of its own (``PRAGMA user_version`` belongs to the
broker).
"""

from __future__ import annotations

import sqlite3
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from worker.brokerurl import file_mistake
from worker.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from worker.errors import Unreachable

#: What SQLite itself waits for the write lock, in seconds, before it is asked again.
_OWN_WAIT = 0.005
#: Errors that waiting cannot mend, told at open as a mistake in the settings.
_MISTAKES = {
    sqlite3.SQLITE_CANTOPEN: "the file cannot be opened; its folder must exist and be writable",
    sqlite3.SQLITE_READONLY: "the file, or its folder, is read-only",
    sqlite3.SQLITE_PERM: "the file may not be accessed",
    sqlite3.SQLITE_AUTH: "the file may not be accessed",
    sqlite3.SQLITE_NOTADB: "the file is not an SQLite database; name another one",
}
_TROUBLES = {
    sqlite3.SQLITE_BUSY: "another process kept it locked past the timeout",
    sqlite3.SQLITE_LOCKED: "another process kept it locked past the timeout",
    sqlite3.SQLITE_FULL: "the disk is full; make room",
    sqlite3.SQLITE_IOERR: "the disk failed to read or write",
    sqlite3.SQLITE_CORRUPT: "the file is damaged; restore it, or set it aside (it is forgotten)",
}


@dataclass(frozen=True, slots=True)
class Layout:
    """The tables of one kind of store, with their version."""

    #: What the store is, as errors call it, and its URL: ``dedup``.
    kind: str
    #: The table (name, value) that holds the version.
    meta: str
    version: int
    schema: Sequence[str]
    #: What is raised while the file cannot be used.
    unavailable: type[Unreachable]


class SqliteFile:
    """A connection to a file, made when needed and again after any error.

    One thread at a time uses it. Whoever waits for the write lock asks for it every few
    milliseconds: SQLite's own waiting backs off up to 100 ms, and beside others that ask often (the
    embedded broker in the same file) it may find the lock taken each time until its time is up.
    """

    def __init__(self, path: Path, layout: Layout, timeout: float) -> None:
        # The absolute path, so that a reconnect after a change of folder finds the same file.
        self.path = path.absolute()
        self._layout = layout
        self._timeout = timeout
        self._durable: bool | None = None
        #: The connection, while there is one.
        self.db: sqlite3.Connection | None = None

    def open(self) -> None:
        """Open the file, which is created, and make the tables.

        Raises ConfigurationError for what waiting cannot mend (no such folder, read-only, not a
        database, made by a newer version), and the layout's ``unavailable`` for what it can
        (locked, full).
        """
        try:
            self._connect()
        except sqlite3.Error as error:
            self.close()
            reason = _MISTAKES.get(_primary_code(error))
            if reason is not None:
                raise ConfigurationError(f"{self._shown}: {reason} ({error})") from error
            raise self._away(error) from error
        except ConfigurationError:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection; the next transaction opens it again."""
        db, self.db = self.db, None
        self._durable = None
        if db is not None:
            db.close()

    @contextmanager
    def transaction(self, *, durable: bool) -> Iterator[sqlite3.Connection]:
        """Run the block as one IMMEDIATE transaction; ``durable``: on disk when it is left.

        Without it the block is safe against a crash of the process but not of the machine. Raises
        the layout's ``unavailable``; then nothing was changed, or nothing is known.
        """
        try:
            db = self._connect() if self.db is None else self.db
            if durable != self._durable:
                db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
                self._durable = durable
            self._begin(db)
            yield db
            db.execute("COMMIT")
        except BaseException as error:
            # Closing rolls back, and the next call starts from a known state.
            self.close()
            if isinstance(error, sqlite3.Error):
                raise self._away(error) from error
            raise

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Run the block as one transaction that only reads: it keeps no writer waiting.

        Raises the layout's ``unavailable``.
        """
        try:
            db = self._connect() if self.db is None else self.db
            db.execute("BEGIN")
            yield db
            db.execute("COMMIT")
        except BaseException as error:
            self.close()
            if isinstance(error, sqlite3.Error):
                raise self._away(error) from error
            raise

    @property
    def _shown(self) -> str:
        return f"{self._layout.kind} store {self.path}"

    def _connect(self) -> sqlite3.Connection:
        """Open the file, make the tables, and refuse a layout that this version does not know.

        Raises sqlite3.Error, or ConfigurationError for the layout.
        """
        layout = self._layout
        # One thread at a time uses it, but not always the one that opened it.
        db = sqlite3.connect(
            self.path, timeout=_OWN_WAIT, isolation_level=None, check_same_thread=False
        )
        self.db, self._durable = db, None
        self._enter_wal(db)
        self._begin(db)
        db.execute(
            f"CREATE TABLE IF NOT EXISTS {layout.meta}"
            " (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID"
        )
        for statement in layout.schema:
            db.execute(statement)
        own, look = str(layout.version), f"SELECT value FROM {layout.meta} WHERE name = 'version'"  # noqa: S608 - a name of our own
        db.execute(f"INSERT OR IGNORE INTO {layout.meta} VALUES ('version', ?)", (own,))  # noqa: S608 - as above
        (found,) = db.execute(look).fetchone()
        if found != own:
            raise ConfigurationError(
                f"{self._shown}: its layout is version {found}, this program knows {own};"
                " use the program that made it, or another file"
            )
        db.execute("COMMIT")
        return db

    def _begin(self, db: sqlite3.Connection) -> None:
        """Begin a transaction that has the write lock, waiting for that up to the timeout."""
        give_up = time.monotonic() + self._timeout
        while True:
            try:
                db.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if _primary_code(error) != sqlite3.SQLITE_BUSY or time.monotonic() >= give_up:
                    raise
            else:
                return

    def _enter_wal(self, db: sqlite3.Connection) -> None:
        """Switch to write-ahead logging, which lets readers and one writer work side by side.

        SQLite answers "locked" at once, without the busy timeout, where two processes switch a
        new file at the same moment; so that is waited for here.
        """
        give_up = time.monotonic() + self._timeout
        while True:
            try:
                (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
            except sqlite3.OperationalError as error:
                if _primary_code(error) != sqlite3.SQLITE_BUSY or time.monotonic() >= give_up:
                    raise
                time.sleep(0.01)
                continue
            if mode != "wal":
                raise ConfigurationError(
                    f"{self._shown}: no write-ahead log on this file system (a network"
                    " drive?); put the file on a local disk"
                )
            return

    def _away(self, error: sqlite3.Error) -> Unreachable:
        code = _primary_code(error)
        reason = _TROUBLES.get(code) or _MISTAKES.get(code) or "the file cannot be used"
        return self._layout.unavailable(f"{self._shown}: {reason} ({error})")


def path_of(url: str, kind: str) -> Path:
    """Return the file of ``sqlite:///relative.db`` or ``sqlite:////absolute.db``.

    Raises ConfigurationError.
    """
    if mistake := file_mistake(url):
        raise ConfigurationError(f"{kind} URL {url!r}: {mistake}")
    return Path(unquote(urlsplit(url).path.removeprefix("/")))


def _primary_code(error: sqlite3.Error) -> int:
    """Return SQLite's primary result code: the low byte of the extended one."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
