"""The tables, as metadata that a project's migrations can take."""

from __future__ import annotations

import re
from hashlib import blake2b
from typing import TYPE_CHECKING

from sqlalchemy import Column, Double, Index, MetaData, String, Table
from sqlalchemy.dialects import mysql

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

_LENGTH = 255
_PLAIN = re.compile(r"[!-~]{1,200}")
#: MySQL compares by a collation, which takes "a" for "A" unless it is told otherwise.
_TEXT = String(_LENGTH).with_variant(
    mysql.VARCHAR(_LENGTH, charset="ascii", collation="ascii_bin"), "mysql", "mariadb"
)

metadata = MetaData()

#: One row for each handler and id whose effect is committed; as ``Context.once`` makes it.
inbox_table = Table(
    "qworker_inbox",
    metadata,
    Column("handler", _TEXT, primary_key=True),
    Column("message_id", _TEXT, primary_key=True),
    #: Seconds since the epoch.
    Column("at", Double, nullable=False),
    Index("qworker_inbox_at", "at"),
    sqlite_with_rowid=False,
)


def create_tables(bind: Engine | Connection) -> None:
    """Make the tables that are not there yet.

    With asyncio: ``await connection.run_sync(create_tables)``.
    """
    metadata.create_all(bind)


def plain(text: str) -> str:
    """Return ``text`` as every database keeps, compares and indexes it: a hash where it must be.

    Ids of other publishers may be long, or hold what a database refuses (NUL), folds (case) or pads
    (spaces at the end).
    """
    if _PLAIN.fullmatch(text):
        return text
    return f"blake2b:{blake2b(text.encode('utf-8', 'surrogatepass'), digest_size=32).hexdigest()}"
