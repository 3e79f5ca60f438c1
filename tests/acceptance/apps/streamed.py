"""A service that takes its steps from a stream, and from a queue, of somebody else."""

from acceptance.apps.events import Step
from acceptance.apps.ledger import noted
from worker import App, Context

app = App("streamed")
app.source("their.log", offset="first")
app.source("their.queue")


@app.on(Step)
def take(event: Step, context: Context) -> None:
    """Note it."""
    with noted(event, context):
        pass
