"""Connections that a thread has kept: closed once they are too old or broken, before they are used.

Django keeps a connection for each thread and closes it at the begin and the end of a request, where
it has failed or has outlived ``CONN_MAX_AGE``. Nobody makes requests of a worker. So here it is the
begin and the end of what a handler does.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from asgiref.sync import sync_to_async
from django.db import connections

from worker import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker import Context


def missing(table: str, using: str) -> ConfigurationError:
    """Return the error that says how to make a table which is not there."""
    return ConfigurationError(
        f"the database {using!r} has no table {table}: put 'worker.contrib.django' into"
        " INSTALLED_APPS, and run 'manage.py migrate qworker'"
    )


def refresh(connection: Any) -> None:
    """Close a connection of this thread where it is broken, or too old; the next use opens one.

    One in the midst of a transaction (of a test, say) is left alone.
    """
    if not connection.in_atomic_block:
        connection.close_if_unusable_or_obsolete()


def refresh_all() -> None:
    """Do so with all connections of this thread."""
    for connection in connections.all(initialized_only=True):
        refresh(connection)


def fresh_connections(context: Context, call_next: Callable[[Context], Any]) -> Any:
    """Let no handler meet a connection that is broken or too old: ``app.use(fresh_connections)``.

    For handlers that use the database without an inbox, which sees to its own connection. The
    queries of a coroutine (``aget`` and the like) have the thread that asgiref gives them.
    """
    if _is_in_loop():
        return _fresh(context, call_next)
    refresh_all()
    try:
        return call_next(context)
    finally:
        refresh_all()


async def _fresh(context: Context, call_next: Callable[[Context], Any]) -> Any:
    await sync_to_async(refresh_all)()
    try:
        return await call_next(context)
    finally:
        await sync_to_async(refresh_all)()


def _is_in_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
