"""A parked key that goes on being busy is set free all the same, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from worker import App, Event, RetryPolicy
from worker.consumer import Consumer
from worker.replay import Replay, Unparked
from worker.testing import TestWorker


class Step(Event, name="step", key="line"):
    """One of a sequence."""

    line: str
    number: int = 0


class Busy:
    """A parked line of steps that goes on growing, and its replay, one round at a time."""

    def __init__(self) -> None:
        self.app = App("bank")
        self.mended = False
        self.done: list[int] = []
        self.number = 0
        self.replay_id = "replay"
        self.app.on(Step, name="work", retry=RetryPolicy(attempts=1, exhausted="park_key"))(
            self.work
        )

    def work(self, event: Step) -> None:
        if not self.mended:
            raise ValueError("no")
        self.done.append(event.number)

    def open(self, worker: TestWorker, replay: Replay) -> None:
        """Park the first three, then mend the handler."""
        self.worker, self.replay = worker, replay
        self.publish(3)
        worker.run()
        assert self.upto is not None
        self.mended = True

    @property
    def consumer(self) -> Consumer:
        consumer = self.worker._consumer  # its ticks, one by one
        assert consumer is not None
        return consumer

    @property
    def upto(self) -> int | None:
        """The number up to which the line is parked; None where it is free."""
        return self.worker.store.parked("bank").get("K")

    def publish(self, many: int = 1) -> None:
        for _ in range(many):
            self.worker.publish(Step(line="K", number=self.number))
            self.number += 1

    def tick(self) -> None:
        """Let the service do all that it can do now, and what is due in a moment."""
        for _ in range(4):
            while self.consumer.tick(0):
                pass
            self.worker.clock.advance(0.05)

    def round(self, meanwhile: Callable[[], None]) -> None:
        """Send back what is parked, with its marker; ``meanwhile`` happens before both."""
        upto = self.upto
        assert upto is not None
        meanwhile()
        self.tick()
        letters = self.replay._move("K", [self.replay_id], Unparked())  # one round of key()
        meanwhile()
        self.replay._mark("K", letters, upto)  # as above
        self.tick()

    @property
    def parked(self) -> int:
        return len(self.worker.parked)


@pytest.fixture
def busy() -> Iterator[Busy]:
    service = Busy()
    with (
        TestWorker(service.app, settings={"concurrency": 1, "prefetch": 40}) as worker,
        Replay("bank", worker.settings, worker.store) as replay,
    ):
        service.open(worker, replay)
        yield service


def test_what_arrives_behind_a_marker_is_withheld_and_follows_the_last_one(busy: Busy) -> None:
    busy.round(busy.publish)
    assert busy.upto is not None, "something was parked before the first marker"

    busy.round(busy.publish)
    assert busy.upto is None
    assert busy.parked == 0

    busy.publish()
    busy.worker.run()
    assert busy.done == list(range(busy.number))


def test_without_another_marker_it_is_parked_after_all(busy: Busy) -> None:
    busy.round(busy.publish)
    parked = busy.parked
    busy.publish(2)
    busy.tick()
    assert busy.parked == parked, "withheld"

    busy.worker.clock.advance(6)
    busy.tick()
    assert busy.parked == parked + 2

    busy.round(busy.publish)
    busy.round(busy.publish)
    busy.worker.run()
    assert busy.done == list(range(busy.number))


def test_no_more_is_withheld_than_a_share_of_the_prefetch(busy: Busy) -> None:
    busy.round(busy.publish)
    parked = busy.parked
    busy.publish(11)
    busy.tick()
    assert busy.parked == parked + 11

    busy.round(lambda: None)
    busy.worker.run()
    assert busy.done == list(range(busy.number))


def test_where_that_was_too_little_the_next_marker_has_more(busy: Busy) -> None:
    for most in (10, 20, 30, 30):
        busy.round(busy.publish)
        parked = busy.parked
        busy.publish(most)
        busy.tick()
        assert busy.parked == parked, "withheld"
        busy.publish()
        busy.tick()
        assert busy.parked == parked + most + 1

    busy.round(lambda: None)
    assert busy.upto is None
    busy.worker.run()
    assert busy.done == list(range(busy.number))


def test_a_drain_returns_what_is_withheld_in_order(busy: Busy) -> None:
    busy.round(busy.publish)
    busy.publish(3)
    busy.tick()
    busy.worker.drain()
    busy.worker.run()

    busy.replay_id = "another"  # whoever follows does not know how far the first one came
    busy.round(lambda: None)
    busy.worker.run()
    assert busy.upto is None
    assert busy.done == list(range(busy.number))
