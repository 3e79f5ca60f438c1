"""When retries hold half of a shard's prefetch, failures are given up early, and it is told."""

from __future__ import annotations

from typing import Any

import pytest

from worker import App, Context, Event, Retry, RetryPolicy
from worker.telemetry import AttemptFailed, HeldTooMuch
from worker.testing import TestWorker

HOUR = 3600.0


class Loner(Event, name="loner"):
    """A message without a key."""


class Step(Event, name="step", key="line"):
    """The one message of its key."""

    line: str


def crowd(worker: TestWorker) -> None:
    for number in range(20):
        worker.publish(Step(line=str(number)))
    worker.run(advance=False)


def test_failures_are_given_up_early_with_the_reason() -> None:
    app = App("bank")

    @app.on(Step, retry=RetryPolicy(attempts=5, wait="fixed", first_wait=HOUR, max_wait=HOUR))
    def work(event: Step) -> None:
        raise ValueError("no")

    with TestWorker(app, settings={"prefetch": 10, "outage_after": 1000}) as worker:
        crowd(worker)

        assert len([e for e in worker.runtime_events if isinstance(e, HeldTooMuch)]) == 1
        assert {letter.reason for letter in worker.dead_letters} == {
            (
                "given up early, 5 of 10 prefetched messages of shard 0 wait for retries;"
                " failed at attempt 1: ValueError: no"
            )
        }


@pytest.mark.parametrize("prefetch", [2, 3, 8, 9])
def test_a_shard_goes_on_while_half_of_its_prefetch_waits(prefetch: int) -> None:
    app = App("bank")

    @app.on(Step, retry=RetryPolicy(attempts=5, wait="fixed", first_wait=HOUR, max_wait=HOUR))
    def work(event: Step) -> None:
        raise ValueError("no")

    with TestWorker(app, settings={"prefetch": prefetch, "outage_after": 1000}) as worker:
        crowd(worker)
        assert len(worker.dead_letters) == 20 - (prefetch + 1) // 2


def test_a_shard_goes_on_where_more_than_half_of_its_prefetch_waits_for_this_and_that() -> None:
    app = App("bank")
    done: list[str] = []

    @app.on(Step)
    def work(event: Step) -> None:
        if int(event.line) < 5:
            raise Retry(delay=HOUR)
        done.append(event.line)

    @app.on(Loner)
    def paused(event: Loner) -> None:
        pass

    with TestWorker(app, settings={"prefetch": 10}) as worker:
        consumer: Any = worker._consumer
        consumer.pause(["paused"])
        for _ in range(3):
            worker.publish(Loner())
        for number in range(25):
            worker.publish(Step(line=str(number)))
        for _ in range(100):
            worker.clock.advance(0.1)
            consumer.tick(0)
        assert len(done) == 20


def test_who_asks_for_another_time_gets_it() -> None:
    app = App("bank")
    asked: list[str] = []

    @app.on(Step)
    def work(event: Step) -> None:
        if event.line not in asked:
            asked.append(event.line)
            raise Retry(delay=HOUR)

    with TestWorker(app, settings={"prefetch": 10}) as worker:
        crowd(worker)
        assert [type(e) for e in worker.runtime_events].count(HeldTooMuch) == 1
        assert worker.dead_letters == []

        worker.run()
        assert worker.dead_letters == []
        assert len(worker.executed) == 40


def test_a_message_that_may_wait_elsewhere_is_not_given_up() -> None:
    """Waits that survived a restart crowd a shard with messages that would have left it."""
    app = App("bank")
    failed: list[str] = []
    tried: list[int] = []

    @app.on(Step)
    def ask(event: Step) -> None:
        if event.line not in failed:
            failed.append(event.line)
            raise Retry(delay=HOUR)

    @app.on(Loner, retry=RetryPolicy(attempts=5, wait="fixed", first_wait=HOUR, max_wait=HOUR))
    def work(event: Loner, context: Context) -> None:
        tried.append(context.attempt)
        if context.attempt == 1:
            raise ValueError("no")

    with TestWorker(app, settings={"prefetch": 10}) as worker:
        for number in range(5):
            worker.publish(Step(line=str(number)))
        worker.run(advance=False)
        worker.publish(Loner())
        worker.run(advance=False)

        assert worker.dead_letters == []
        assert [type(e) for e in worker.runtime_events].count(HeldTooMuch) == 0
        assert tried == [1]
        last = worker.runtime_events[-1]
        assert isinstance(last, AttemptFailed)
        assert last.handler == "work"
