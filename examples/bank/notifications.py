"""The first observer. qworker start --app examples.bank.notifications

It was written when there was only version 1 of bank_events, and still has that.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from bank_events import DepositRecorded, UserDeposited

from worker import App, Context

FILE = Path(os.environ.get("BANK_FOLDER", ".")) / "notifications.db"

app = App("notifications")


@app.lifespan
def database() -> Iterator[None]:
    with closing(sqlite3.connect(FILE)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE IF NOT EXISTS notifications (user_id TEXT, text TEXT)")
        yield


@app.on(UserDeposited)
class NotifyOfDeposit:
    def handle(self, event: UserDeposited, context: Context) -> None:
        notify(event.user_id, f"Congrats for your {event.amount} deposit")


@app.on(DepositRecorded)
def notify_of_record(event: DepositRecorded) -> None:
    notify(event.user_id, f"Your {event.amount} deposit is on your account")


def notify(user_id: str, text: str) -> None:
    print(f"{user_id}: {text}", flush=True)
    with closing(sqlite3.connect(FILE, timeout=30)) as db, db:
        db.execute("INSERT INTO notifications VALUES (?, ?)", (user_id, text))
