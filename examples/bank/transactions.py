"""The second observer, which came later. qworker start --app examples.bank.transactions

Money must not be booked twice, not even where the process dies between the booking and the
runtime's record of it. So the id of the deposit is the key of the booking: one transaction holds
the effect and the memory of it.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from decimal import Decimal
from pathlib import Path

from examples.bank.events import TransactionCreated, UserDeposited
from worker import App, Context

FILE = Path(os.environ.get("BANK_FOLDER", ".")) / "transactions.db"

app = App("transactions")


@app.lifespan
def database() -> Iterator[None]:
    with closing(sqlite3.connect(FILE)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute(
            "CREATE TABLE IF NOT EXISTS transactions (deposit_id TEXT PRIMARY KEY, user_id TEXT,"
            " kind TEXT, amount TEXT)"
        )
        db.execute("CREATE TABLE IF NOT EXISTS balances (user_id TEXT PRIMARY KEY, balance TEXT)")
        yield


@app.on(UserDeposited)
def record_deposit(event: UserDeposited, context: Context) -> None:
    with closing(sqlite3.connect(FILE, timeout=30, isolation_level="IMMEDIATE")) as db, db:
        booked = db.execute(
            "INSERT OR IGNORE INTO transactions VALUES (?, ?, 'deposit', ?)",
            (event.event_id, event.user_id, str(event.amount)),
        )
        if booked.rowcount:
            add_to_balance(db, event.user_id, event.amount)
            print(f"{event.user_id}: booked {event.amount}", flush=True)
    # Leaves when this function has returned, so never before what it speaks of is committed.
    context.publish(
        TransactionCreated(user_id=event.user_id, amount=event.amount, deposit_id=event.event_id)
    )


def add_to_balance(db: sqlite3.Connection, user_id: str, amount: Decimal) -> None:
    row = db.execute("SELECT balance FROM balances WHERE user_id = ?", (user_id,)).fetchone()
    balance = Decimal(row[0] if row else 0) + amount
    db.execute("INSERT OR REPLACE INTO balances VALUES (?, ?)", (user_id, str(balance)))
