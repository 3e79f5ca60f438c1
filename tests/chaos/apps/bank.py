"""A bank: a transfer takes money from one account, and its child adds it to another."""

from __future__ import annotations

from chaos.apps.witness import effect, witnessed
from worker import App, Context, Event, RetryPolicy

app = App("bank")
_QUICK = RetryPolicy(attempts=8, wait="fixed", first_wait=0.1)


class Transfer(Event, name="bank.transfer", key="source"):
    """The ``sequence``-th transfer from an account."""

    source: str
    target: str
    amount: int
    sequence: int


class Deposit(Event, name="bank.deposit", key="target"):
    """Its second half, as the first one publishes it."""

    target: str
    amount: int


@app.on(Transfer, retry=_QUICK)
def withdraw(event: Transfer, context: Context) -> None:
    """Take the money and send it on."""
    with witnessed(context, event.sequence) as facts:
        context.publish(Deposit(target=event.target, amount=event.amount))
        effect(context, facts, (event.source, -event.amount))


@app.on(Deposit, retry=_QUICK)
def deposit(event: Deposit, context: Context) -> None:
    """Add what was sent."""
    with witnessed(context) as facts:
        effect(context, facts, (event.target, event.amount))
