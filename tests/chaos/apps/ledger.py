"""A ledger: two handlers of one event, a plain one and a coroutine, and one that parks its keys."""

from __future__ import annotations

import asyncio
import time

from acceptance.apps.events import Step
from chaos.apps.witness import effect, witnessed
from worker import App, Context, Event, Reject, RetryPolicy

#: What an event asks its handlers for: to fail twice, always, or to be dead.
FLAKY, HOPELESS, DEAD = "flaky", "hopeless", "dead"
_FLAKY_FAILURES = 2
_QUICK = RetryPolicy(attempts=8, wait="fixed", first_wait=0.1)

app = App("ledger")


class Strict(Event, name="test.strict", key="key"):
    """An event whose key is parked where it cannot be handled."""

    key: str
    sequence: int
    fault: str = ""
    seconds: float = 0.0


@app.on(Step, retry=_QUICK)
def count(event: Step, context: Context) -> None:
    """Take the time that the event asks for, and leave a row."""
    with witnessed(context, event.sequence) as facts:
        _fail(event.fault, context)
        time.sleep(event.seconds)
        effect(context, facts)


@app.on(Step, retry=_QUICK)
async def observe(event: Step, context: Context) -> None:
    """Do the same in the event loop."""
    with witnessed(context, event.sequence) as facts:
        _fail(event.fault, context)
        await asyncio.sleep(event.seconds)
        effect(context, facts)


@app.on(Strict, retry=RetryPolicy(attempts=2, wait="fixed", first_wait=0.1, exhausted="park_key"))
def post(event: Strict, context: Context) -> None:
    """Park the key of what is hopeless."""
    with witnessed(context, event.sequence) as facts:
        _fail(event.fault, context)
        time.sleep(event.seconds)
        effect(context, facts)


def _fail(fault: str, context: Context) -> None:
    if fault == DEAD:
        raise Reject("dead by order")
    if fault == HOPELESS or (fault == FLAKY and context.attempt <= _FLAKY_FAILURES):
        raise ConnectionError(f"{fault} by order")
