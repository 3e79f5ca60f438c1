"""One handler needs a server that is away while the file ``down`` is there; one needs nothing."""

from pathlib import Path

from acceptance.apps.events import Step
from acceptance.apps.ledger import note, noted
from worker import App, Context, RetryPolicy

app = App("outage")


@app.on(Step, retry=RetryPolicy(attempts=3, wait="fixed", first_wait=0.2))
def send(event: Step, context: Context) -> None:
    """Speak to the server."""
    note("begin", event, context)
    if Path("down").exists():
        raise ConnectionRefusedError("no mail server")
    note("effect", event, context)


@app.on(Step)
def witness(event: Step, context: Context) -> None:
    """Need nothing."""
    with noted(event, context):
        pass
