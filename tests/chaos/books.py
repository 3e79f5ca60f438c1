"""The books of a bank in a database of SQLAlchemy's: accounts, effects, an inbox and an outbox."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    Engine,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    event,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.orm import Session
from worker.contrib.sqlalchemy import create_tables
from worker.contrib.sqlalchemy.tables import outbox_table

from chaos.history import Entry

_METADATA = MetaData()
_NUMBER = BigInteger().with_variant(Integer, "sqlite")
_accounts = Table(
    "accounts",
    _METADATA,
    Column("name", String(50), primary_key=True),
    Column("balance", Integer, nullable=False),
)
_effects = Table(
    "effects",
    _METADATA,
    Column("number", _NUMBER, primary_key=True, autoincrement=True),
    Column("at", Double),
    Column("pid", Integer),
    *(Column(name, Text) for name in ("id", "key", "handler", "supervisor", "detail")),
    *(Column(name, BigInteger) for name in ("sequence", "run", "attempt", "shard", "fence")),
)
#: Seconds that a write to a file waits for those of other processes.
_BUSY = 60.0


def open_books(url: str) -> Engine:
    """Return an engine for these books."""
    if not url.startswith("sqlite"):
        return create_engine(url)
    engine = create_engine(url, connect_args={"timeout": _BUSY})

    @event.listens_for(engine, "connect")
    def set_up(connection: Any, _record: object) -> None:
        connection.execute("PRAGMA journal_mode = WAL")
        # Outlives the death of every process; no power is cut here.
        connection.execute("PRAGMA synchronous = NORMAL")

    return engine


def move(session: Session, account: str, amount: int) -> None:
    """Add money to an account."""
    session.execute(
        update(_accounts)
        .where(_accounts.c.name == account)
        .values(balance=_accounts.c.balance + amount)
    )


def note(session: Session, facts: dict[str, Any]) -> None:
    """Write that a handler had its effect."""
    session.execute(insert(_effects), [facts])


class Books:
    """What a trial sees of them."""

    def __init__(self, url: str) -> None:
        #: Where they are, as the handlers are told.
        self.where = url
        self._engine = open_books(url)
        self.kind = self._engine.dialect.name

    def create(self, accounts: int) -> None:
        """Make the tables, and so many accounts."""
        _METADATA.create_all(self._engine)
        create_tables(self._engine)
        rows = [{"name": f"account-{number}", "balance": 0} for number in range(accounts)]
        with self._engine.begin() as connection:
            connection.execute(insert(_accounts), rows)

    def effects(self) -> list[Entry]:
        """Return all effects, in the order of their transactions as far as they depend."""
        columns = [column for column in _effects.c if column.name != "number"]
        with self._engine.connect() as connection:
            rows = connection.execute(select(*columns).order_by(_effects.c.number)).mappings()
            return [Entry(what="effect", **row) for row in rows]

    def balances(self) -> dict[str, int]:
        """Return what every account has."""
        with self._engine.connect() as connection:
            return {row.name: row.balance for row in connection.execute(select(_accounts))}

    def unsent(self) -> int:
        """Return how many rows are in the outbox."""
        with self._engine.connect() as connection:
            return connection.scalar(select(func.count()).select_from(outbox_table)) or 0

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()
