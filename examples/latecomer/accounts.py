"""The service that comes late: points of each customer, from the first day on.

qworker start --app examples.latecomer.accounts
"""

import os
import sqlite3
from contextlib import closing

from examples.latecomer.events import PointsEarned
from worker import App, Context

app = App("accounts")


@app.on(PointsEarned)
def add(event: PointsEarned, context: Context) -> None:
    is_past = "qw-replay" in context.headers
    with closing(connect()) as db:
        context.once(db)
        db.execute(
            "INSERT INTO earned (customer, number, points, is_past) VALUES (?, ?, ?, ?)",
            (event.customer, event.number, event.points, is_past),
        )
        db.commit()


def connect() -> sqlite3.Connection:
    db = sqlite3.connect(os.environ.get("ACCOUNTS", "accounts.db"), timeout=30)
    db.execute(
        "CREATE TABLE IF NOT EXISTS earned"
        " (id INTEGER PRIMARY KEY, customer TEXT, number INTEGER, points INTEGER, is_past BOOLEAN)"
    )
    return db
