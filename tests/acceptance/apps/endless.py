"""Handlers that never end, each in its own way."""

import asyncio
import re
import time

from acceptance.apps.events import Step
from acceptance.apps.ledger import noted
from worker import App, Context, RetryPolicy

RETRY = RetryPolicy(attempts=2, wait="fixed", first_wait=0.1)

app = App("endless")


@app.on(Step, timeout=1.0, retry=RETRY)
def thread(event: Step, context: Context) -> None:
    """Sleep for ever in a thread, which nobody can stop; or let no other thread run any more."""
    with noted(event, context):
        if event.fault == "interpreter":
            re.match("(a+)+$", "a" * 64 + "b")
        while event.fault == "thread":
            time.sleep(0.01)


@app.on(Step, timeout=1.0, retry=RETRY)
async def coroutine(event: Step, context: Context) -> None:
    """Sleep for ever in a coroutine, which can be cancelled; or in the event loop's own thread."""
    with noted(event, context):
        while event.fault == "coroutine":  # noqa: ASYNC110 - it waits for nothing
            await asyncio.sleep(0.01)
        while event.fault == "loop":
            time.sleep(0.01)  # noqa: ASYNC251 - the mistake under test
