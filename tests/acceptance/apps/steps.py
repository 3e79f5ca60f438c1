"""Two handlers of one event, a plain one and a coroutine, that only note what they did."""

import asyncio
import time

from acceptance.apps.events import Step
from acceptance.apps.ledger import noted
from worker import App, Context

app = App("steps")


@app.on(Step)
def count(event: Step, context: Context) -> None:
    """Take the time that the event asks for, and while it is held."""
    with noted(event, context):
        while event.is_held:
            time.sleep(0.01)
        if event.seconds:
            time.sleep(event.seconds)


@app.on(Step)
async def observe(event: Step, context: Context) -> None:
    """Do the same in the event loop."""
    with noted(event, context):
        while event.is_held:  # noqa: ASYNC110 - a test has nothing but a file to tell it by
            await asyncio.sleep(0.01)
        if event.seconds:
            await asyncio.sleep(event.seconds)
