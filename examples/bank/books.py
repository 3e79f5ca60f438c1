"""What the story looks at in the end: what was paid in, and what each service has of it."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

try:
    import django  # noqa: F401 - finance needs it, and whoever has it not is told here
    from sqlalchemy import create_engine, text
except ModuleNotFoundError as error:
    raise SystemExit(f"the bank needs {error.name}, which 'make install' brings") from None


class Deposit(NamedTuple):
    user: str
    amount: Decimal
    note: str = ""

    @property
    def cents(self) -> int:
        return int(self.amount * 100)


class Books:
    """Reads the databases of the services, each in its own way."""

    def __init__(self, folder: Path, databases: Mapping[str, str]) -> None:
        self._folder = folder
        self._finance = create_engine(databases["FINANCE_DATABASE"])
        self._transactions = create_engine(databases["TRANSACTIONS_DATABASE"])

    def taken(self) -> list[Deposit]:
        """Return what finance has in its database."""
        query = "SELECT user_id, amount, note FROM finance_deposit ORDER BY id"
        with self._finance.connect() as db:
            found = db.execute(text(query)).all()
        # SQLite gives a float, PostgreSQL a Decimal.
        return [Deposit(user, Decimal(f"{amount:.2f}"), note) for user, amount, note in found]

    def unsent(self) -> int:
        """Return how many events wait in the outbox of finance."""
        with self._finance.connect() as db:
            return int(db.execute(text("SELECT count(*) FROM qworker_outbox")).scalar_one())

    def booked(self) -> list[tuple[str, int, str]]:
        """Return user, cents and note of each booking."""
        query = "SELECT user_id, cents, note FROM booking ORDER BY id"
        with self._transactions.connect() as db:
            return [tuple(row) for row in db.execute(text(query))]

    def balances(self) -> dict[str, int]:
        with self._transactions.connect() as db:
            return dict(db.execute(text("SELECT user_id, cents FROM account")).tuples().all())

    def notified(self, what: str) -> list[tuple[str, str]]:
        """Return user and text of each notification that begins with ``what``."""
        query = "SELECT user_id, text FROM notifications ORDER BY rowid"
        rows = self._rows("notifications.db", query)
        return [(user, told) for user, told in rows if told.startswith(what)]

    def lines(self) -> list[tuple[str, str, str]]:
        """Return user, amount and note of each line of a statement."""
        return self._rows("statements.db", "SELECT user_id, amount, note FROM line ORDER BY id")

    def _rows(self, file: str, query: str) -> list[Any]:
        with closing(sqlite3.connect(self._folder / file, timeout=30)) as db:
            return db.execute(query).fetchall()
