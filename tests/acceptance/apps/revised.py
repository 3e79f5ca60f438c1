"""Two handlers that take the sequence number of a step for its revision: one waits for gaps."""

from acceptance.apps.events import Step
from acceptance.apps.ledger import noted
from worker import App, Context, Revisions

app = App("revised")


@app.on(Step, revision=Revisions("sequence", gap="wait", limit=300))
def every(event: Step, context: Context) -> None:
    """Be told of each revision, in their order."""
    with noted(event, context):
        pass


@app.on(Step, revision="sequence")
async def latest(event: Step, context: Context) -> None:
    """Be told of no revision that is older than the last."""
    with noted(event, context):
        pass
