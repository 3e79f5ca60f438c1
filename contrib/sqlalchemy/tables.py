"""The tables, as metadata that a project's migrations can take."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)
from sqlalchemy.dialects import mysql
from worker.contrib.identity import LENGTH

from worker import ConfigurationError

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

#: ``plain`` text. MySQL compares by a collation, which takes "a" for "A" unless it is told not to.
_PLAIN = String(LENGTH).with_variant(
    mysql.VARCHAR(LENGTH, charset="ascii", collation="ascii_bin"), "mysql", "mariadb"
)
#: MySQL's plain kinds end at 64 KiB.
_LONG_TEXT = Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb")
_BYTES = LargeBinary().with_variant(mysql.LONGBLOB(), "mysql", "mariadb")

metadata = MetaData()

#: One row for each handler and id whose effect is committed; as ``Context.once`` makes it.
inbox_table = Table(
    "qworker_inbox",
    metadata,
    Column("handler", _PLAIN, primary_key=True),
    Column("message_id", _PLAIN, primary_key=True),
    #: Seconds since the epoch.
    Column("at", Double, nullable=False),
    Index("qworker_inbox_at", "at"),
    sqlite_with_rowid=False,
)

#: One row for each message that the broker has not confirmed yet.
outbox_table = Table(
    "qworker_outbox",
    metadata,
    # The first column (``contrib/outbox/postgres.py`` says why).
    Column("transaction_id", BigInteger),
    Column(
        "sequence",
        BigInteger().with_variant(Integer, "sqlite"),
        primary_key=True,
        autoincrement=True,
    ),
    Column("service", _PLAIN, nullable=False),
    #: What orders it: its key, or else its id.
    Column("lane", _PLAIN, nullable=False),
    Column("message_id", _PLAIN, nullable=False),
    Column("name", String(LENGTH), nullable=False),
    Column("exchange", String(LENGTH), nullable=False),
    Column("routing_key", String(LENGTH), nullable=False),
    #: Nobody to receive it is an error.
    Column("mandatory", Boolean, nullable=False),
    #: AMQP basic properties, and headers, as JSON.
    Column("properties", _LONG_TEXT, nullable=False),
    Column("headers", _LONG_TEXT, nullable=False),
    Column("body", _BYTES, nullable=False),
    #: Seconds since the epoch.
    Column("at", Double, nullable=False),
    Index("qworker_outbox_lane", "service", "lane", "sequence"),
    # A number is given once, also after its row is gone.
    sqlite_autoincrement=True,
    mysql_charset="utf8mb4",
)


def create_tables(bind: Engine | Connection) -> None:
    """Make the tables that are not there yet.

    With asyncio: ``await connection.run_sync(create_tables)``.
    """
    metadata.create_all(bind)


def missing(table: Table, engine: Engine) -> ConfigurationError:
    """Return the error that says how to make a table which is not there."""
    where = engine.url.render_as_string(hide_password=True)
    return ConfigurationError(
        f"{where} has no table {table.name}: make it by your migrations, or by"
        " worker.contrib.sqlalchemy.create_tables(engine)"
    )
