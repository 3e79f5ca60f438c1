"""A dedup store that has forgotten which keys are parked is told what lies in the parked queue."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from worker import App, Event, RetryPolicy
from worker.codec import Codec
from worker.deadletters import Box
from worker.dedup.memory import Memory
from worker.inventory import lying_keys
from worker.parking import parked_keys
from worker.testing import TestWorker


class Step(Event, name="step", key="line"):
    """One of a sequence."""

    line: str
    number: int = 0


class Service:
    """A service that parks what it is told to, and a store that forgets."""

    def __init__(self, worker_of: Callable[[App], TestWorker]) -> None:
        self.app = App("bank")
        self.done: list[tuple[str, int]] = []
        self.mended = False
        self.app.on(Step, retry=RetryPolicy(attempts=1, exhausted="park_key"))(self.work)
        self.worker = worker_of(self.app)

    def work(self, event: Step) -> None:
        if event.number == 0 and not self.mended:
            raise ValueError("no")
        self.done.append((event.line, event.number))

    def publish(self, line: str, *numbers: int) -> None:
        for number in numbers:
            self.worker.publish(Step(line=line, number=number))

    def forget(self) -> None:
        """Let the service end, and the store forget everything meanwhile."""
        self.worker.drain()
        store: Any = self.worker.store
        store._memory = Memory()

    def box(self) -> Box:
        return Box("bank.parked", Codec.of("bank", self.worker.settings), self.worker.settings)


@pytest.fixture
def service() -> Iterator[Service]:
    with ExitStack() as stack:
        yield Service(lambda app: stack.enter_context(TestWorker(app)))


def test_what_comes_of_a_key_that_lies_there_is_parked_behind(service: Service) -> None:
    service.publish("a", 0, 1)
    service.publish("b", 0)
    service.worker.run()
    assert {*parked_keys(service.worker.store, "bank")} == {"a", "b"}
    service.forget()
    assert parked_keys(service.worker.store, "bank") == {}

    service.publish("a", 2)
    service.publish("c", 1)
    service.worker.run()
    assert service.done == [("c", 1)]
    assert {*parked_keys(service.worker.store, "bank")} == {"a", "b"}
    places = [str(letter.headers["qw-parked-place"]) for letter in service.worker.parked]
    assert places == sorted(places)


def test_a_store_that_knows_them_all_is_asked_alone(service: Service) -> None:
    service.publish("a", 0)
    service.worker.run()
    service.worker.drain()
    service.mended = True
    with service.box() as box:
        box.remove(box.read())
        assert {*parked_keys(service.worker.store, "bank")} == {"a"}
        service.publish("a", 1)
        service.worker.run()  # with a queue that somebody reads
    assert [letter.key for letter in service.worker.parked] == ["a"]


def test_while_somebody_else_is_reading_nothing_begins(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    service.publish("a", 0)
    service.worker.run()
    service.forget()
    service.publish("a", 1)
    service.publish("b", 1)
    with service.box() as box:
        assert [letter.key for letter in box.read()] == ["a"]
        assert lying_keys("bank", service.worker.settings) is None
        consumer = service.worker._open()
        end = time.monotonic() + 0.3
        while time.monotonic() < end:
            consumer.tick(0.01)
            service.worker.clock.advance(0.05)
        assert service.done == []
    assert caplog.messages.count("nothing begins while somebody else reads the parked queue") == 1
    service.worker.run()
    assert service.done == [("b", 1)]
    assert len(service.worker.parked) == 2
