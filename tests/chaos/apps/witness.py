"""How a handler tells of itself: begin and end in the history, its effect where the tier has it.

On the Redis tier the effect is a line of the history, which nothing takes back. On the
transactional tier it is a row of an SQLite database, in one transaction with the id of its event
(``Context.once``). The trial reads both as one history.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import count
from pathlib import Path
from time import monotonic
from typing import Any

from chaos import crashpoints
from chaos.database import connect
from chaos.history import Writer
from worker import Context
from worker.errors import AlreadyDone

_DATABASE = os.environ.get("CHAOS_DATABASE", "")
#: The supervisor that started this process, and may be gone later.
_LIFE = os.getppid()
_own = threading.local()
#: Numbers of the calls in this process; any thread may take the next one.
_runs = count(1)


@contextmanager
def witnessed(context: Context, sequence: int = -1) -> Iterator[dict[str, Any]]:
    """Note that the handler began, and how it ended; gives what tells this run from others."""
    facts = {
        "handler": context.handler,
        "id": context.message_id,
        "key": context.key or "",
        "sequence": sequence,
        "run": next(_runs),
        "attempt": context.attempt,
        "shard": context.shard,
        "fence": context.fence,
        "supervisor": os.environ.get("SUPERVISOR", ""),
        "life": _LIFE,
    }
    _writer().note("begin", **facts)
    crashpoints.reach("in the handler")
    try:
        yield facts
    except AlreadyDone:
        _writer().note("end", **facts)
        raise
    except BaseException as error:
        _writer().note("failed", **facts, detail=f"{type(error).__name__}: {error}")
        raise
    crashpoints.reach("after the effect")
    _writer().note("end", **facts)


def effect(context: Context, facts: dict[str, Any], *changes: tuple[str, int]) -> None:
    """Let the effect happen: money is added to these accounts, if any, and the run is noted.

    It happens whole or not at all, at one moment.
    """
    detail = " ".join(f"{account}:{amount}" for account, amount in changes)
    if not _DATABASE:
        _writer().note("effect", **facts, detail=detail)
        return
    with _connection() as db:
        context.once(db)
        crashpoints.reach("in the handler's transaction")
        for account, amount in changes:
            db.execute("INSERT OR IGNORE INTO accounts VALUES (?, 0)", (account,))
            db.execute(
                "UPDATE accounts SET balance = balance + ? WHERE name = ?", (amount, account)
            )
        row = facts | {"detail": detail, "pid": os.getpid(), "at": monotonic()}
        names, values = ", ".join(row), ", ".join(f":{name}" for name in row)
        db.execute(f"INSERT INTO effects ({names}) VALUES ({values})", row)  # noqa: S608 - constants


def _connection() -> sqlite3.Connection:
    """Return the connection of this thread."""
    db: sqlite3.Connection | None = getattr(_own, "db", None)
    if db is None:
        db = _own.db = connect(Path(_DATABASE))
    return db


@cache
def _writer() -> Writer:
    return Writer(Path(os.environ["CHAOS_HISTORY"]))
