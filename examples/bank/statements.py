"""Downstream: a line for each booking. qworker start --app examples.bank.statements"""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from bank_events import TransactionCreated

from worker import App, Context

FILE = Path(os.environ.get("BANK_FOLDER", ".")) / "statements.db"

app = App("statements")


@app.on(TransactionCreated)
def write_line(event: TransactionCreated, context: Context) -> None:
    with closing(connect()) as db:
        context.once(db)
        line = (event.user_id, str(event.amount), event.note)
        db.execute("INSERT INTO line (user_id, amount, note) VALUES (?, ?, ?)", line)
        db.commit()


def connect() -> sqlite3.Connection:
    db = sqlite3.connect(FILE, timeout=30)
    db.execute(
        "CREATE TABLE IF NOT EXISTS line"
        " (id INTEGER PRIMARY KEY, user_id TEXT, amount TEXT, note TEXT)"
    )
    return db
