"""A handler that is paused in a consumer: nothing of it begins, all else goes on, in order."""

from __future__ import annotations

from typing import Any

import pytest

from worker import App, Event, RetryPolicy
from worker.telemetry import OutageBegan, OutageEnded, SuspectFound
from worker.testing import TestWorker

ONE_SECOND = RetryPolicy(attempts=5, wait="fixed", first_wait=1.0, jitter=0)


class Step(Event, name="step", key="line"):
    line: str
    number: int = 0


class Service:
    """Two handlers of one event; one of them fails while there is a fault."""

    def __init__(self) -> None:
        self.app = App("bank")
        self.done: list[tuple[str, int]] = []
        self.fault: Exception | None = None
        self.app.on(Step, name="mail", retry=ONE_SECOND)(self.mail)
        self.app.on(Step, name="count", retry=ONE_SECOND)(self.count)

    def mail(self, event: Step) -> None:
        if self.fault is not None:
            raise self.fault
        self.done.append(("mail", event.number))

    def count(self, event: Step) -> None:
        self.done.append(("count", event.number))

    def numbers(self, handler: str) -> list[int]:
        return [number for name, number in self.done if name == handler]


def consumer_of(worker: TestWorker) -> Any:
    return worker._consumer or worker._open()  # TestWorker pauses nothing


def publish(worker: TestWorker, number: int, *, lines: int = 1, begin: int = 0) -> None:
    for n in range(begin, begin + number):
        worker.publish(Step(line=f"line-{n % lines}", number=n))


def executed(worker: TestWorker, handler: str) -> int:
    return sum(each.handler == handler for each in worker.executed)


def test_a_paused_handler_waits_while_the_others_go_on() -> None:
    service = Service()
    with TestWorker(service.app) as worker:
        consumer = consumer_of(worker)
        consumer.pause(["mail"])
        publish(worker, 20, lines=3)
        worker.run()

        assert service.numbers("count") == sorted(service.numbers("count"))
        assert len(service.numbers("count")) == 20
        assert executed(worker, "mail") == 0
        assert consumer.statistics()["paused"] == 20

        consumer.pause([])
        worker.run()

        for line in range(3):
            mine = [n for n in service.numbers("mail") if n % 3 == line]
            assert mine == list(range(line, 20, 3))
        assert consumer.statistics()["paused"] == 0
        assert worker.executed[-1].attempt == 1


def test_it_is_told_when_nothing_runs_any_more() -> None:
    service = Service()
    with TestWorker(service.app) as worker:
        told: list[int] = []
        consumer = consumer_of(worker)
        consumer.on_paused = lambda: told.append(len(service.done))
        consumer.pause(["mail"])
        assert told == []
        worker.run()
        assert told == [0]
        consumer.pause(["mail"])
        worker.run()
        assert told == [0, 0]


def test_what_was_claimed_and_has_not_begun_does_not_begin_and_keeps_its_attempt() -> None:
    service = Service()
    pause: list[Any] = []

    def count(event: Step) -> None:
        service.count(event)
        if pause:
            pause.pop().pause(["mail"])

    app = App("bank")
    app.on(Step, name="count")(count)  # runs first, and what follows it is claimed with it
    app.on(Step, name="mail", retry=ONE_SECOND)(service.mail)
    with TestWorker(app) as worker:
        consumer = consumer_of(worker)
        pause.append(consumer)
        publish(worker, 5)
        worker.run()
        assert service.numbers("mail") == []
        consumer.pause([])
        worker.run()

        assert service.numbers("mail") == [0, 1, 2, 3, 4]
        assert {each.attempt for each in worker.executed} == {1}


def test_a_retry_that_is_due_waits_for_the_end_of_the_pause() -> None:
    service = Service()
    service.fault = ConnectionError("down")
    with TestWorker(service.app) as worker:
        publish(worker, 3)
        worker.run(advance=False)
        consumer = consumer_of(worker)
        consumer.pause(["mail"])
        service.fault = None
        worker.clock.advance(100)
        worker.run()
        assert executed(worker, "mail") == 1

        consumer.pause([])
        worker.run()
        assert service.numbers("mail") == [0, 1, 2]


def test_an_outage_gets_no_probe_while_it_is_paused_and_goes_on_after_it() -> None:
    service = Service()
    service.fault = ConnectionError("down")
    with TestWorker(service.app, settings={"outage_after": 3}) as worker:
        publish(worker, 10, lines=10)
        consumer = consumer_of(worker)
        while not any(isinstance(each, OutageBegan) for each in worker.runtime_events):
            consumer.tick(0)
        consumer.pause(["mail"])
        while consumer.tick(0):
            pass
        before = executed(worker, "mail")
        assert consumer.next_due >= worker.clock()
        worker.clock.advance(600)
        worker.run()
        assert executed(worker, "mail") == before
        assert len(service.numbers("count")) == 10

        # The end of the pause is not the end of the outage: probes, one at a time.
        consumer.pause([])
        for _ in range(3):
            consumer.tick(0)
        assert executed(worker, "mail") == before + 1
        assert not any(isinstance(each, OutageEnded) for each in worker.runtime_events)

        service.fault = None
        worker.run()
        assert sorted(service.numbers("mail")) == list(range(10))


def test_the_end_of_an_outage_is_not_the_end_of_a_pause() -> None:
    service = Service()
    with TestWorker(service.app) as worker:
        consumer = consumer_of(worker)
        lanes = consumer._dispatcher.lanes  # both at one moment
        consumer.pause(["mail"])
        lanes.block("mail")
        lanes.unblock("mail")
        publish(worker, 3)
        worker.run()

        assert service.numbers("mail") == []
        consumer.pause([])
        worker.run()
        assert service.numbers("mail") == [0, 1, 2]


def test_a_suspect_of_a_paused_handler_holds_nothing_else_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service = Service()
    with TestWorker(service.app) as worker:
        publish(worker, 1)
        consumer = consumer_of(worker)
        monkeypatch.setattr(consumer._executor, "run", _die)  # a process dies so
        with pytest.raises(_Died):
            worker.run()
        monkeypatch.undo()
        consumer.close()
        worker._consumer = None
        consumer = consumer_of(worker)
        consumer.pause(["mail", "count"])
        consumer.pause(["mail"])
        publish(worker, 5, begin=1)
        worker.clock.advance(worker.settings.claim_ttl + 1)
        worker.run()

        assert service.numbers("count") == [0, 1, 2, 3, 4, 5]
        assert service.numbers("mail") == []
        consumer.pause([])
        worker.run()
        assert service.numbers("mail") == [0, 1, 2, 3, 4, 5]
        assert any(isinstance(each, SuspectFound) for each in worker.runtime_events)


class _Died(BaseException):
    """The end of the process."""


def _die(_task: object) -> None:
    raise _Died


def test_idle_is_who_has_nothing_but_paused_work_also_with_a_full_prefetch() -> None:
    service = Service()
    with TestWorker(service.app, settings={"prefetch": 4}) as worker:
        consumer = consumer_of(worker)
        consumer.pause(["mail"])
        publish(worker, 10)
        worker.run()

        assert service.numbers("count") == [0, 1, 2, 3]
        assert consumer.is_idle()
        assert consumer.statistics()["paused"] == 4
        consumer.pause([])
        assert not consumer.is_idle()
        worker.run()
        assert service.numbers("mail") == list(range(10))
