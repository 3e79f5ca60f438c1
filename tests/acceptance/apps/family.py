"""A handler that publishes children, which go to other shards and have children of their own."""

import time

from acceptance.apps.events import Step
from acceptance.apps.ledger import note
from worker import App, Context, Event, RetryPolicy

GENERATIONS = 3


class Loner(Event, name="test.loner"):
    """An event without a key, whose retries may wait in the broker."""

    number: int


class Stray(Event, name="test.stray"):
    """An event without a key; each fourth one fails twice."""

    number: int


app = App("family")


@app.on(Step, retry=RetryPolicy(attempts=3, wait="fixed", first_wait=1.0))
def handle(event: Step, context: Context) -> None:
    """Have two children, slowly; the event with a fault fails at first, and waits."""
    note("begin", event, context)
    if event.fault and context.attempt == 1:
        raise TimeoutError("not yet")
    time.sleep(event.seconds)
    if event.sequence < GENERATIONS:
        for child in "ab":
            context.publish(
                Step(key=event.key + child, sequence=event.sequence + 1, seconds=event.seconds)
            )
    note("effect", event, context)


@app.on(Loner, retry=RetryPolicy(attempts=2, wait="fixed", first_wait=5.0))
def wait(event: Loner, context: Context) -> None:
    """Fail at the first attempt, and succeed five seconds later."""
    note("begin", event, context)
    if context.attempt == 1:
        raise TimeoutError("not yet")
    note("effect", event, context)


@app.on(Stray, retry=RetryPolicy(attempts=9, wait="fixed", first_wait=1.0))
def take_in(event: Stray, context: Context) -> None:
    """Succeed at once, or at the third attempt."""
    note("begin", event, context)
    if event.number % 4 == 0 and context.attempt <= 2:
        raise TimeoutError("not yet")
    note("effect", event, context)
