"""A service that consumes what relays send on, and notes it."""

from acceptance.apps.events import Step
from acceptance.apps.ledger import noted
from acceptance.apps.relaying import Passed
from worker import App, Context

app = App("downstream")


@app.on(Passed)
def passed(step: Passed, context: Context) -> None:
    """Note it."""
    with noted(step, context):
        pass


@app.on("unique.test.step", type=Step)
def unique(step: Step, context: Context) -> None:
    """Note it."""
    with noted(step, context):
        pass
