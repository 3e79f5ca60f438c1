"""The first observer. qworker start --app examples.bank.notifications"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from examples.bank.events import UserDeposited
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
        text = f"Congrats for your {event.amount} deposit"
        print(f"{event.user_id}: {text}", flush=True)
        with closing(sqlite3.connect(FILE, timeout=30)) as db, db:
            db.execute("INSERT INTO notifications VALUES (?, ?)", (event.user_id, text))
