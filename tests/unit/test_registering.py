"""What cannot be meant is told where it is written, and not where it would go wrong."""

from __future__ import annotations

from typing import Any

import pytest

from worker import App, Event
from worker.errors import ConfigurationError

app = App("bank")


class Deposited(Event, name="user.deposited"):
    """Money came in."""


def handle(event: Deposited) -> None:
    """Do nothing."""


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"retry": 3}, "retry=3; a RetryPolicy"),
        ({"timeout": "3"}, "timeout='3'; seconds above zero"),
        ({"timeout": 0}, "timeout=0; seconds above zero"),
    ],
)
def test_options_of_a_handler_are_checked(facts: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        app.on(Deposited, **facts)(handle)


def test_a_decorator_without_what_it_observes_is_told() -> None:
    on: Any = app.on
    with pytest.raises(ConfigurationError, match="without saying what handle observes"):
        on(handle)
