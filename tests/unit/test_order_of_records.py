"""What is recorded after a confirm only is not overtaken by its successors meanwhile.

A crash would run it again after effects of later events of its key.
"""

from __future__ import annotations

import pytest

from worker import App, Command, Context, Event, RetryPolicy
from worker.testing import TestWorker


class Step(Event, name="order.step", key="key"):
    """One of a sequence."""

    key: str
    number: int


class Nobody(Command, name="order.nobody", to="a-service-that-was-never-started"):
    """A command that no queue receives."""


def test_a_parent_whose_child_is_not_taken_holds_its_key_until_it_is_recorded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app = App("order")
    ran: list[tuple[str, int]] = []

    @app.on(Step, retry=RetryPolicy(attempts=3))
    def step(event: Step, context: Context) -> None:
        ran.append((event.key, event.number))
        if event.key == "held" and event.number == 1:
            context.publish(Nobody())

    with TestWorker(app) as worker:
        # The kit gives every command a recipient; this one must have none.
        monkeypatch.setattr(worker._tap, "welcome_commands", lambda: None)
        for number in (1, 2, 3):
            worker.publish(Step(key="held", number=number))
            worker.publish(Step(key="free", number=number))
        worker.run(advance=False)
        assert [number for key, number in ran if key == "free"] == [1, 2, 3]
        assert [number for key, number in ran if key == "held"] == [1]
        worker.run()
        assert [number for key, number in ran if key == "held"] == [1, 2, 3]
        (letter,) = worker.dead_letters
        assert "what it published" in letter.reason
