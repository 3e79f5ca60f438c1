"""A service whose events come from publishers that know nothing of qworker.

What the typed handler gets it writes, a JSON line each, to the file ``received``.
"""

import json
from decimal import Decimal
from pathlib import Path
from threading import Lock

from worker import App, Context, Event

app = App("foreign")
_lock = Lock()


class Deposited(Event, name="user.deposited", key="account"):
    """Money came to an account."""

    account: str
    amount: Decimal
    sequence: int = 0


@app.on(Deposited)
def record(event: Deposited, context: Context) -> None:
    """Write down what came, and as what it came."""
    facts = {
        "id": event.event_id,
        "type": type(event.amount).__name__,
        "account": event.account,
        "amount": str(event.amount),
        "sequence": event.sequence,
        "timestamp": context.timestamp.isoformat() if context.timestamp else None,
        "key": context.key,
        "correlation": context.correlation_id,
        "trace": context.headers.get("traceparent"),
    }
    with _lock, Path("received").open("a") as file:
        file.write(json.dumps(facts) + "\n")
