"""A bank on Django: as ``books``, with the same tables and the same events."""

from __future__ import annotations

import os
from time import monotonic
from typing import Any

from django.db import connections
from django.db.backends.signals import connection_created
from worker.contrib.django import Inbox, Outbox

from chaos import crashpoints
from chaos.apps.transfers import Deposit, Transfer
from chaos.apps.witness import witnessed
from django_settings import configuration, configure
from worker import App, Context, RetryPolicy

_database = configuration(os.environ.get("CHAOS_DATABASE") or "sqlite://")
configure({"default": {**_database, "CONN_MAX_AGE": None}})

app = App("djangobooks")
_inbox = Inbox()
_outbox = Outbox(app)
_QUICK = RetryPolicy(attempts=8, wait="fixed", first_wait=0.1)


def _set_up(connection: Any, **_: Any) -> None:
    if connection.vendor == "sqlite":
        # Outlives the death of every process; no power is cut here.
        connection.cursor().execute("PRAGMA synchronous = NORMAL")


connection_created.connect(_set_up)


@app.on(Transfer, retry=_QUICK)
def withdraw(event: Transfer, context: Context) -> None:
    """Take the money and send it on."""
    with witnessed(context, event.sequence) as facts, _inbox.transaction(context):
        _outbox.publish_on_commit(event.second_half(), context)
        _effect(facts, event.source, -event.amount)


@app.on(Deposit, retry=_QUICK)
def deposit(event: Deposit, context: Context) -> None:
    """Add what was sent."""
    with witnessed(context, event.sequence) as facts, _inbox.transaction(context):
        _effect(facts, event.target, event.amount)


def _effect(facts: dict[str, Any], account: str, amount: int) -> None:
    crashpoints.reach("in the handler's transaction")
    told = {"detail": f"{account}:{amount}", "pid": os.getpid(), "at": monotonic()}
    row = {name: value for name, value in (facts | told).items() if name != "life"}
    connection = connections["default"]
    names = ", ".join(map(connection.ops.quote_name, row))
    values = ", ".join(["%s"] * len(row))
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE accounts SET balance = balance + %s WHERE name = %s", [amount, account]
        )
        cursor.execute(f"INSERT INTO effects ({names}) VALUES ({values})", [*row.values()])  # noqa: S608 - constants
