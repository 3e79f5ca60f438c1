"""A statement that ends a deadlock is asked again, and nothing else is."""

from __future__ import annotations

import pytest
from worker.contrib.outbox import OutboxUnavailable
from worker.contrib.outbox.deadlocks import past_deadlocks, unavailable
from worker.contrib.outbox.rows import Deadlock


class DriverError(Exception):
    sqlstate: str | None = None


def of_state(state: str) -> DriverError:
    error = DriverError("text")
    error.sqlstate = state
    return error


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (DriverError(1213, "Deadlock found when trying to get lock"), True),
        (of_state("40P01"), True),
        (of_state("40001"), True),
        (DriverError(1205, "Lock wait timeout exceeded"), False),
        (of_state("57P01"), False),
        (DriverError(), False),
        (None, False),
    ],
)
def test_a_deadlock_is_told_by_the_drivers_error(error: Exception | None, *, is_one: bool) -> None:
    found = unavailable(error, "the outbox: text")
    assert isinstance(found, Deadlock) is is_one
    assert isinstance(found, OutboxUnavailable)
    assert str(found) == "the outbox: text"


@pytest.mark.parametrize(("deadlocks", "error"), [(0, None), (9, None), (10, Deadlock)])
def test_it_is_asked_again_and_not_for_ever(deadlocks: int, error: type[Exception] | None) -> None:
    left = [deadlocks]

    def ask() -> str:
        left[0] -= 1
        if left[0] >= 0:
            raise Deadlock("again")
        return "done"

    if error is None:
        assert past_deadlocks(ask) == "done"
    else:
        with pytest.raises(error):
            past_deadlocks(ask)
        assert left == [0]


def test_what_is_no_deadlock_is_not_asked_again() -> None:
    asked = []

    def ask() -> None:
        asked.append(1)
        raise OutboxUnavailable("away")

    with pytest.raises(OutboxUnavailable):
        past_deadlocks(ask)
    assert len(asked) == 1
