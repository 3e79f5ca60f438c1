"""Databases that end a deadlock: they give up one of the statements, and it is asked again.

A statement of the outbox is a transaction of its own, so nothing of it is left. What it waited for
belongs to a transaction that goes on by this, so the next try mostly comes through.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from worker.contrib.outbox.rows import Deadlock, OutboxUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker import QworkerError

T = TypeVar("T")

#: Standard SQL's, and PostgreSQL's own; MySQL's error number, which comes first in all its drivers
#: (their manuals, "PostgreSQL Error Codes" and "Server Error Message Reference").
_STATES = ("40001", "40P01")
_NUMBER = 1213
_TRIES = 10


def unavailable(error: BaseException | None, text: str) -> QworkerError:
    """Return what is raised for the driver's own ``error``."""
    state = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
    is_deadlock = error is not None and (state in _STATES or error.args[:1] == (_NUMBER,))
    found: QworkerError = Deadlock(text) if is_deadlock else OutboxUnavailable(text)
    return found


def past_deadlocks(ask: Callable[[], T]) -> T:
    """Return the answer to one statement, which is asked ten times at most."""
    for _ in range(_TRIES - 1):
        try:
            return ask()
        except Deadlock:
            continue
    return ask()
