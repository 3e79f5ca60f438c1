"""What a consumer sleeps on: descriptors, other threads, and a broker that has to be looked at."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from worker.waiter import Waiter

#: Seconds that nothing here lasts: who waited so long was not woken.
FOR_EVER = 60.0


@pytest.fixture
def waiter() -> Iterator[Waiter]:
    made = Waiter()
    yield made
    made.close()


def never() -> bool:
    return False


def test_who_polls_looks_until_something_is_there(waiter: Waiter) -> None:
    looks: list[int] = []

    def look() -> bool:
        looks.append(1)
        return len(looks) == 5

    waiter.poll(FOR_EVER, never, look)
    assert len(looks) == 5


def test_who_polls_looks_at_nothing_where_its_time_is_over(waiter: Waiter) -> None:
    waiter.poll(-1.0, never, lambda: pytest.fail("it looked"))


@pytest.mark.timeout(FOR_EVER / 2)
def test_who_polls_is_woken_by_any_thread(waiter: Waiter) -> None:
    done = threading.Event()

    def wake() -> None:
        while not done.wait(0.01):
            waiter.wake()

    thread = threading.Thread(target=wake)
    thread.start()
    waiter.poll(FOR_EVER, never, never)
    done.set()
    thread.join()
