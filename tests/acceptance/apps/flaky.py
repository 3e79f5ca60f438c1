"""A handler that fails three times and then succeeds."""

from acceptance.apps.events import Step
from acceptance.apps.ledger import note
from worker import App, Context, RetryPolicy

app = App("flaky")


@app.on(Step, retry=RetryPolicy(attempts=5, wait="fixed", first_wait=1.0))
def handle(event: Step, context: Context) -> None:
    """Fail at the first three attempts where the event says so."""
    note("begin", event, context)
    if event.fault and context.attempt <= 3:
        raise TimeoutError("not yet")
    note("effect", event, context)
