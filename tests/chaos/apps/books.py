"""A bank on SQLAlchemy: inbox, effect and what is published are one transaction.

A transfer takes money from one account, and publishes the deposit that adds it to another. Both are
ordered by the account that the money comes from.
"""

from __future__ import annotations

import os
from time import monotonic
from typing import Any

from sqlalchemy.orm import Session, sessionmaker
from worker.contrib.sqlalchemy import Inbox, Outbox

from chaos import crashpoints
from chaos.apps.transfers import Deposit, Transfer
from chaos.apps.witness import witnessed
from chaos.books import move, note, open_books
from worker import App, Context, RetryPolicy

app = App("books")
_engine = open_books(os.environ.get("CHAOS_DATABASE") or "sqlite://")
_inbox = Inbox(sessionmaker(_engine))
_outbox = Outbox(app, _engine)
_QUICK = RetryPolicy(attempts=8, wait="fixed", first_wait=0.1)


@app.on(Transfer, retry=_QUICK)
def withdraw(event: Transfer, context: Context) -> None:
    """Take the money and send it on."""
    with witnessed(context, event.sequence) as facts, _inbox.transaction(context) as session:
        _outbox.publish_on_commit(session, event.second_half(), context)
        _effect(session, facts, event.source, -event.amount)


@app.on(Deposit, retry=_QUICK)
def deposit(event: Deposit, context: Context) -> None:
    """Add what was sent."""
    with witnessed(context, event.sequence) as facts, _inbox.transaction(context) as session:
        _effect(session, facts, event.target, event.amount)


def _effect(session: Session, facts: dict[str, Any], account: str, amount: int) -> None:
    crashpoints.reach("in the handler's transaction")
    move(session, account, amount)
    told = {"detail": f"{account}:{amount}", "pid": os.getpid(), "at": monotonic()}
    note(session, facts | told)
