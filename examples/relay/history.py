"""Downstream: the pages of each user, in order. qworker start --app examples.relay.history"""

import os
import sqlite3
from contextlib import closing
from typing import Any

from worker import App, Context

app = App("history")


@app.on("user.page.viewed")
def note(view: dict[str, Any], context: Context) -> None:
    with closing(connect()) as db:
        context.once(db)
        db.execute("INSERT INTO page (user, page) VALUES (?, ?)", (view["user"], view["page"]))
        db.commit()


def connect() -> sqlite3.Connection:
    db = sqlite3.connect(os.environ.get("HISTORY", "history.db"), timeout=30)
    db.execute("CREATE TABLE IF NOT EXISTS page (id INTEGER PRIMARY KEY, user TEXT, page TEXT)")
    return db
