"""When retries hold half of a shard's prefetch, failures are given up early, and it is told."""

from __future__ import annotations

from worker import App, Event, Retry, RetryPolicy
from worker.telemetry import HeldTooMuch
from worker.testing import TestWorker

HOUR = 3600.0


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
