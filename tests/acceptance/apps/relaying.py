"""Relays of steps: one sends each of them on, the other each that differs from those before."""

import time
from typing import Any

from acceptance.apps.events import Step
from worker import App, chain, deduplicate, shard

app = App("relaying")


class Passed(Step, name="test.passed", key="key"):
    """A step that was sent on."""


@app.relay(Step, to=Passed)
def pass_on(step: Step) -> Passed:
    """Take the time that the step asks for, and send it on."""
    time.sleep(step.seconds)
    return Passed(key=step.key, sequence=step.sequence)


def place(step: dict[str, Any]) -> list[Any]:
    """Return what two copies of a step have in common."""
    return [step["key"], step["sequence"]]


app.relay("test.step", to="unique.{name}", name="unique")(
    chain(deduplicate(by=place), shard(by="key"))
)
