"""What a process says of its work when it has to end before it: nothing done is done again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from waiting import until
from worker import App, Event, Revisions
from worker.consumer import Consumer
from worker.dedup.base import Answers, Batch
from worker.ending import Finish
from worker.errors import DedupUnavailable
from worker.telemetry import HandlerAbandoned, SuspectFound
from worker.testing import TestWorker

PATIENCE = 20.0


class Step(Event, name="step", key="line"):
    """One of a sequence; the third one takes until it is told."""

    line: str
    number: int = 0


class Service:
    """An app, and what its handler did."""

    def __init__(self) -> None:
        self.app = App("bank")
        self.begun: list[int] = []
        self.go_on = threading.Event()
        self.app.on(Step, name="work")(self.work)

    def has_hung(self, times: int) -> bool:
        return self.begun.count(2) == times

    def work(self, event: Step) -> None:
        self.begun.append(event.number)
        if event.number == 2:
            self.go_on.wait(PATIENCE)


def away(_batch: Batch) -> Answers:
    raise DedupUnavailable("it is away")


def was_asked(dialogue: Any) -> bool:
    return dialogue.away_since is not None


def is_worth_a_try(dialogue: Any) -> bool:
    return bool(dialogue.next_try < time.monotonic())


def in_threads(worker: TestWorker) -> Any:
    """Return a consumer with real threads that believes them to be quick: its runs are long."""
    consumer: Any = Consumer(
        worker.app,
        worker.settings,
        shards=range(worker.settings.shards),
        store=worker.store,
    )
    consumer.open()
    consumer._dispatcher._rate, consumer._dispatcher._seconds = (
        1e6,
        0.0,
    )  # as measured on a service at full speed
    consumer._dispatcher.measure = lambda _now: None  # and stays so
    return consumer


def tick_until(consumer: Consumer, condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, consumer.statistics()
        consumer.tick(0.01)


def begin(worker: TestWorker, service: Service) -> Any:
    """Return a consumer that runs five steps of one lane as one run, and hangs in the third."""
    worker.drain()
    for number in range(5):
        worker.publish(Step(line="a", number=number))
    consumer = in_threads(worker)
    tick_until(consumer, lambda: len(service.begun) == 3)
    (run,) = consumer._dispatcher.out
    assert len(run.tasks) == 5
    return consumer


def test_what_is_done_is_recorded_although_a_later_one_of_its_run_hangs() -> None:
    service = Service()
    with TestWorker(service.app, clock=time.monotonic, settings={"claim_ttl": 1}) as worker:
        consumer = begin(worker, service)
        tick_until(consumer, lambda: consumer.counters.completed == 2)
        consumer.drain(time.monotonic())
        tick_until(consumer, lambda: consumer.ended)
        consumer.close()
        assert consumer.ended is Finish.ABANDONED
        (left,) = [e for e in worker.runtime_events if isinstance(e, HandlerAbandoned)]
        assert (left.handler, left.name, left.key, left.attempt) == ("work", "step", "a", 1)
        assert 0 <= left.seconds < PATIENCE

        service.go_on.set()
        worker.run(timeout=PATIENCE)
        assert service.begun == [0, 1, 2, 2, 3, 4]


def test_of_many_that_are_abandoned_the_oldest_are_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("worker.ending._MOST_TOLD", 2)
    service = Service()
    with TestWorker(service.app, clock=time.monotonic, settings={"claim_ttl": 1}) as worker:
        worker.drain()
        consumer = in_threads(worker)
        for line in "abc":
            worker.publish(Step(line=line, number=2))
            tick_until(consumer, partial(service.has_hung, "abc".index(line) + 1))
        consumer.stop()
        consumer.close()
        service.go_on.set()

        told = [e.key for e in worker.runtime_events if isinstance(e, HandlerAbandoned)]
        assert told == ["a", "b"]
        assert "HandlerAbandoned: handler=work message_id=" in caplog.text
        assert "1 more handlers are abandoned while they run" in caplog.text


def test_what_is_done_behind_one_that_waits_for_a_revision_is_recorded_too() -> None:
    app = App("bank")
    told: list[int] = []
    go_on = threading.Event()

    @app.on(Step, revision=Revisions("number", gap="wait", limit=60))
    def keep(_: Step) -> None:
        pass

    @app.on(Step)
    def tell(event: Step) -> None:
        told.append(event.number)
        if event.number == 8:
            go_on.wait(PATIENCE)

    with TestWorker(app, clock=time.monotonic, settings={"claim_ttl": 1}) as worker:
        worker.publish(Step(line="a", number=1))
        worker.run(timeout=PATIENCE)
        worker.drain()
        for number in (7, 8):
            worker.publish(Step(line="a", number=number))
        consumer = in_threads(worker)
        tick_until(consumer, lambda: told == [1, 7, 8])
        (run,) = consumer._dispatcher.out
        assert [task.handler_name for task in run.tasks] == ["keep", "tell"] * 2
        tick_until(consumer, lambda: consumer.counters.completed == 1)
        consumer.drain(time.monotonic())
        tick_until(consumer, lambda: consumer.ended)
        consumer.close()
        assert consumer.ended is Finish.ABANDONED

        go_on.set()
        consumer = in_threads(worker)
        tick_until(consumer, lambda: consumer.counters.completed == 1)
        tick_until(consumer, lambda: consumer.counters.early == 2)
        assert told == [1, 7, 8, 8]
        consumer.stop()
        consumer.close()


def test_what_is_abandoned_is_no_suspect_and_waits_for_the_end_of_its_claim() -> None:
    service = Service()
    with TestWorker(service.app, clock=time.monotonic, settings={"claim_ttl": 1}) as worker:
        consumer = begin(worker, service)
        for begun in range(2, 6):
            consumer.stop()
            consumer.close()
            assert consumer.ended is Finish.ABANDONED
            consumer = in_threads(worker)
            tick_until(consumer, partial(service.has_hung, begun))
        consumer.stop()
        consumer.close()

        service.go_on.set()
        worker.run(timeout=PATIENCE)
        assert [service.begun.count(number) for number in (0, 1, 3, 4)] == [1] * 4
        assert not [e for e in worker.runtime_events if isinstance(e, SuspectFound)]
        assert worker.dead_letters == []
        # The abandoned one's attempts count, those behind it had never begun.
        assert [each.attempt for each in worker.executed] == [6, 1, 1]


def test_a_store_that_is_back_hears_of_what_is_done_although_it_was_to_be_asked_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service = Service()
    with TestWorker(service.app, clock=time.monotonic, settings={"claim_ttl": 1}) as worker:
        consumer = begin(worker, service)

        with monkeypatch.context() as patch:
            patch.setattr(worker.store, "apply", away)
            tick_until(consumer, lambda: consumer._dialogue.next_try > time.monotonic() + 0.5)
        soon = time.monotonic() + 0.2
        tick_until(consumer, lambda: time.monotonic() > soon)
        consumer.stop()
        consumer.close()
        assert consumer.ended is Finish.ABANDONED

        service.go_on.set()
        worker.run(timeout=PATIENCE)
        assert service.begun == [0, 1, 2, 2, 3, 4]


def test_a_drain_while_the_store_is_away_leaves_time_for_a_last_word_to_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app = App("bank")

    @app.on(Step)
    def work(_: Step) -> None:
        monkeypatch.setattr(worker.store, "apply", away)

    with TestWorker(app) as worker:
        consumer: Any = worker._consumer
        worker.publish(Step(line="a"))
        tick_until(consumer, lambda: consumer._dialogue.away_since is not None)
        deadline = worker.clock() + 20.0
        consumer.drain(deadline)
        while not consumer.ended:
            worker.clock.advance(0.5)
            consumer.tick(0)

        assert consumer.ended is Finish.ABANDONED
        assert worker.clock() + worker.settings.dedup_timeout <= deadline + 0.5


def test_what_was_claimed_by_a_last_word_is_given_back_and_is_no_crash(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app = App("bank")
    done: list[int] = []
    app.on(Step, name="work")(lambda event: done.append(event.number))
    with TestWorker(app, clock=time.monotonic, settings={"claim_ttl": 60}) as worker:
        worker.drain()
        worker.publish(Step(line="a"))
        for _ in range(3):  # as often as makes an end of a message whose process crashes
            consumer = in_threads(worker)
            dialogue = consumer._dialogue
            with monkeypatch.context() as patch:
                patch.setattr(worker.store, "apply", away)
                tick_until(consumer, partial(was_asked, dialogue))
            until(partial(is_worth_a_try, dialogue))
            consumer.stop()
            consumer.close()
            assert done == []

        consumer = in_threads(worker)
        tick_until(consumer, lambda: done)
        consumer.stop()
        consumer.close()
        assert not [e for e in worker.runtime_events if isinstance(e, SuspectFound)]
        assert worker.dead_letters == []
