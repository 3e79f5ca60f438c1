"""Two handlers of one event: until ``mended`` is there one retries, the other parks its key."""

from pathlib import Path

from acceptance.apps.events import Step
from acceptance.apps.ledger import noted
from worker import App, Context, RetryPolicy

app = App("pair")


@app.on(Step, retry=RetryPolicy(attempts=50, wait="fixed", first_wait=1.0))
def slow(event: Step, context: Context) -> None:
    """Fail at the first event of a key."""
    if event.sequence == 0 and not Path("mended").exists():
        raise ConnectionError("not yet")
    with noted(event, context):
        pass


@app.on(Step, retry=RetryPolicy(attempts=2, wait="fixed", first_wait=0.1, exhausted="park_key"))
def quick(event: Step, context: Context) -> None:
    """Fail for ever where it is told to."""
    if event.fault and not Path("mended").exists():
        raise LookupError(f"no account {event.key}")
    with noted(event, context):
        pass
