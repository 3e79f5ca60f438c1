"""Two handlers of one event, a plain one and a coroutine, that only note what they did."""

import asyncio
import time

from acceptance.apps.events import Step
from acceptance.apps.ledger import noted
from worker import App, Context

app = App("steps")


@app.on(Step)
def count(event: Step, context: Context) -> None:
    """Take the time that the event asks for."""
    with noted(event, context):
        if event.seconds:
            time.sleep(event.seconds)


@app.on(Step)
async def observe(event: Step, context: Context) -> None:
    """Do the same in the event loop."""
    with noted(event, context):
        if event.seconds:
            await asyncio.sleep(event.seconds)
