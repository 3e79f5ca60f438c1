"""A handler that kills its own process where the event says so."""

import os
import signal
import time

from acceptance.apps.events import Step
from acceptance.apps.ledger import noted
from worker import App, Context

app = App("poison")


@app.on(Step)
def handle(event: Step, context: Context) -> None:
    """Die as at the hands of the kernel when memory is short."""
    with noted(event, context):
        if event.fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(event.seconds)
