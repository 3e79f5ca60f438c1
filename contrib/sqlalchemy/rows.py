"""The rows of the outbox, read and removed by an Engine of their own.

Each statement is a transaction of its own, which needs nobody to end it: who is stopped, or cut
off, between a DELETE and its COMMIT would keep the locks of these rows from all others.

Which rows may be sent already is another matter in each database.

*PostgreSQL* has a horizon (:mod:`worker.contrib.outbox.postgres`).

*SQLite* has one writer at a time, so numbers are in the order of the commits.

*MySQL, MariaDB.* Here ``read`` asks for locks on what it reads (``LOCK IN SHARE MODE`` under READ
COMMITTED, which is said for that statement alone), so it waits for open transactions that have
inserted a row in that range, for a second at most (then it fails, and is tried again). Between a
number and its row there are microseconds in which nobody sees it; two transactions that meet there
do not depend on each other.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager, suppress
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    BigInteger,
    LargeBinary,
    create_engine,
    delete,
    func,
    inspect,
    literal_column,
    select,
    text,
    type_coerce,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.types import NullType
from worker.contrib.identity import plain
from worker.contrib.outbox import EVERYTHING, entry_of
from worker.contrib.outbox.deadlocks import past_deadlocks, unavailable
from worker.contrib.outbox.postgres import HORIZON, PARAMETERS, WRITER
from worker.contrib.sqlalchemy.tables import missing, outbox_table

from worker import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from sqlalchemy import URL, ColumnElement, Connection, Delete, Engine, Select

    from contrib.outbox.rows import Bounds, Entry

_MYSQL = ("mysql", "mariadb")
_KNOWN = ("postgresql", "sqlite", *_MYSQL)
#: Drivers that hand parameters on to libpq.
_LIBPQ = ("psycopg", "psycopg2", "psycopg2cffi")
_WRITER = literal_column(WRITER, BigInteger).label("transaction_id")
#: Seconds for which MySQL waits for a row that somebody inserts.
_WAITS = 1
#: Of MySQL, in seconds.
_PATIENCE = "innodb_lock_wait_timeout"


class OutboxRows:
    """The rows of a service; an :class:`~worker.contrib.outbox.OutboxStore`."""

    def __init__(self, engine: Engine, service: str) -> None:
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._is_mysql = engine.dialect.name in _MYSQL
        self._has_horizon = engine.dialect.name == "postgresql"
        self._service = plain(service)
        self._where = engine.url.render_as_string(hide_password=True)
        if engine.dialect.is_async:
            raise ConfigurationError(
                f"the database {self._where}: this driver is for asyncio, and the outbox is read by"
                " a thread: take sqlite:// or postgresql+psycopg://, say"
            )

    @classmethod
    def open(cls, url: str, service: str) -> OutboxRows:
        """Return those at ``url``; connects at the first use. Raises ConfigurationError."""
        try:
            parsed = make_url(url)
        except (ArgumentError, ValueError):
            # What SQLAlchemy says of it may have a part of the password.
            raise ConfigurationError(
                f"the database {url.partition(':')[0]}: this is no URL as SQLAlchemy has them:"
                " postgresql://user@host:port/name, say, or sqlite:///file.db; what is special in"
                " a password is escaped"
            ) from None
        if parsed.drivername in ("postgresql", "postgres"):
            parsed = parsed.set(drivername="postgresql+psycopg")
        try:
            engine = create_engine(parsed, pool_pre_ping=True, connect_args=_patience(parsed))
        except NoSuchModuleError:
            raise ConfigurationError(_unknown(parsed)) from None
        except ImportError as error:  # told on: whoever knows how a driver is installed says so
            where = parsed.render_as_string(hide_password=True)
            told = f"the database {where}: {error}"
            if parsed.drivername in _MYSQL:
                told += f" (a driver that is installed is named by {parsed.drivername}+pymysql://)"
            raise ConfigurationError(told) from error
        except (ArgumentError, TypeError, ValueError) as error:
            where = parsed.render_as_string(hide_password=True)
            raise ConfigurationError(f"the database {where}: {error}") from None
        return cls(engine, service)

    def check(self) -> None:
        """Raise ConfigurationError where there is no table, or not even a file to have it."""
        if self._is_missing_file():
            raise ConfigurationError(
                f"{self._where}: there is no such file, so nothing was published there: make it"
                " with its tables (by your migrations, or by"
                " worker.contrib.sqlalchemy.create_tables(engine)), or say another database"
            )
        with self._talking() as connection:
            known = inspect(connection).has_table(outbox_table.name)
        if not known:
            raise missing(outbox_table, self._engine)

    def horizon(self) -> int | None:
        """Return the first open transaction that may have written rows."""
        if not self._has_horizon:
            return None
        with self._talking() as connection:
            return int(connection.execute(text(HORIZON)).scalar_one())

    def newest(self) -> int:
        """Return the highest sequence number."""
        query = select(func.max(outbox_table.c.sequence)).where(
            outbox_table.c.service == self._service
        )
        with self._talking() as connection:
            return int(connection.execute(query).scalar_one() or 0)

    def read(self, limit: int, within: Bounds = EVERYTHING) -> list[Entry]:
        """Return rows by their sequence numbers."""
        query = reading(self._service, limit, within)
        if self._has_horizon:
            others = (column for column in _columns() if column.name != _WRITER.name)
            query = query.with_only_columns(_WRITER, *others)
        if self._is_mysql:
            query = query.with_for_update(read=True)

        def look() -> list[Entry]:
            with self._talking() as connection, ExitStack() as stack:
                if self._is_mysql:
                    stack.enter_context(waiting_briefly(connection))
                return [entry_of(row) for row in connection.execute(query).mappings()]

        found: list[Entry] = past_deadlocks(look)
        return found

    def remove(self, sequences: Sequence[int]) -> None:
        """Remove rows, but on PostgreSQL those that somebody has locked: a later pass does that.

        To wait for one would hold up all others, which would be sent again and again meanwhile.
        """

        def do() -> None:
            with self._talking() as connection:
                connection.execute(removing(sequences, skips_locked=self._has_horizon))

        past_deadlocks(do)

    def close(self) -> None:
        """Close the connections that no one uses."""
        self._engine.dispose()

    def _is_missing_file(self) -> bool:
        """Tell whether it is a file that a look at it would make."""
        url = self._engine.url
        is_file = url.get_backend_name() == "sqlite" and "uri" not in url.query
        return is_file and not Path(url.database or "").exists()

    @contextmanager
    def _talking(self) -> Iterator[Connection]:
        """Give a connection that commits each statement. Raises OutboxUnavailable."""
        # Errors of the driver come as they are where a connection is prepared: SQLAlchemy wraps
        # those of statements.
        driver = self._engine.dialect.loaded_dbapi.Error
        try:
            with self._engine.begin() as connection:
                yield connection
        except (SQLAlchemyError, driver) as error:
            reason = getattr(error, "orig", None) or error
            told = " ".join(str(reason).split())
            raise unavailable(reason, f"the outbox at {self._where}: {told}") from error


def reading(service: str, limit: int, within: Bounds) -> Select[tuple[object, ...]]:
    """Return the query of :meth:`OutboxRows.read`, without its locks."""
    columns = outbox_table.c
    query = select(*_columns()).where(columns.service == service, columns.sequence > within.after)
    if within.until is not None:
        query = query.where(columns.sequence <= within.until)
    if within.lanes is not None:
        query = query.where(columns.lane.in_([*within.lanes]))
    if within.without:
        query = query.where(columns.lane.not_in([*within.without]))
    return query.order_by(columns.sequence).limit(limit)


@contextmanager
def waiting_briefly(connection: Connection) -> Iterator[None]:
    """On MySQL: have the query of the block wait briefly for locks, and see what is committed.

    The session may be somebody else's next, by the pool: its own patience is given back to it.
    """
    own = connection.scalar(text(f"SELECT @@{_PATIENCE}"))
    try:
        connection.execute(text(f"SET {_PATIENCE} = {_WAITS}"))
        connection.execute(text("SET TRANSACTION ISOLATION LEVEL READ COMMITTED"))
        yield
    finally:
        with suppress(SQLAlchemyError):  # of what is broken there is no session any more
            connection.execute(text(f"SET {_PATIENCE} = {int(own)}"))


def removing(sequences: Collection[int], *, skips_locked: bool) -> Delete:
    """Return the statement of :meth:`OutboxRows.remove`."""
    column = outbox_table.c.sequence
    these = column.in_(sequences)
    if skips_locked:
        these = column.in_(select(column).where(these).with_for_update(skip_locked=True))
    return delete(outbox_table).where(these)


def _columns() -> Iterator[ColumnElement[Any]]:
    """Yield those of the table, bodies as the driver has them: they may be no bytes in SQLite."""
    for column in outbox_table.c:
        is_body = isinstance(column.type, LargeBinary)
        yield type_coerce(column, NullType()).label(column.name) if is_body else column


def _unknown(url: URL) -> str:
    """Return what is wrong with a URL of no database that SQLAlchemy knows."""
    where = url.render_as_string(hide_password=True)
    near = get_close_matches(url.drivername, _KNOWN, 1)
    if near:
        return f"the database {where}: did you mean {near[0]}://?"
    known = ", ".join(f"{name}://" for name in _KNOWN)
    return f"the database {where}: SQLAlchemy knows no {url.drivername}://; there are {known}"


def _patience(url: URL) -> dict[str, object]:
    """Return what a driver is to be told, and the URL does not say."""
    if url.get_backend_name() != "postgresql" or url.get_driver_name() not in _LIBPQ:
        return {}
    return {name: value for name, value in PARAMETERS.items() if name not in url.query}
