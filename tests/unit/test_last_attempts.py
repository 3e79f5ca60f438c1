"""A failure counts wherever it meets its message; the last one is the last, in any weather."""

from __future__ import annotations

from typing import Any

import pytest

from worker import App, Event, RetryPolicy
from worker.dedup.base import Batch, Claim, record_ids
from worker.ending import Finish
from worker.errors import BrokerUnreachable, DedupUnavailable
from worker.telemetry import OutageBegan
from worker.testing import TestWorker


class Step(Event, name="step", key="line"):
    """One of a sequence."""

    line: str
    number: int = 0


class Service:
    """An app whose handler fails until it is mended."""

    def __init__(self, exhausted: Any = "dead_letter", attempts: int = 3) -> None:
        self.app = App("bank")
        self.mended = False
        self.done: list[tuple[str, int]] = []
        policy = RetryPolicy(attempts=attempts, exhausted=exhausted)
        self.app.on(Step, name="work", retry=policy)(self.work)

    def work(self, event: Step) -> None:
        if not self.mended and event.number == 0:
            raise ValueError("no")
        self.done.append((event.line, event.number))


def consumer_of(worker: TestWorker) -> Any:
    return worker._consumer or worker._open()  # to go tick by tick


def run_until(worker: TestWorker, executions: int) -> None:
    """Go on until a handler has been called so often, and nobody has heard of the last call."""
    while len(worker.executed) < executions:
        consumer = consumer_of(worker)
        if not consumer.tick(0):
            worker.clock.advance_to(consumer.next_due)


def cut(worker: TestWorker) -> None:
    consumer_of(worker)._link_lost(BrokerUnreachable("cut"))


def attempts(worker: TestWorker, id_: str) -> list[int]:
    return [each.attempt for each in worker.executed if each.event_id == id_]


@pytest.mark.parametrize("fault", ["drain", "link"])
@pytest.mark.parametrize("failed", [1, 2, 3])
def test_a_failure_counts_and_the_last_one_is_the_end(fault: str, failed: int) -> None:
    service = Service()
    with TestWorker(service.app) as worker:
        poison = worker.publish(Step(line="a"))
        worker.publish(Step(line="a", number=1))
        run_until(worker, failed)
        if fault == "drain":
            assert worker.drain() is Finish.DRAINED
            assert len(worker.dead_letters) == (failed == 3)
        else:
            cut(worker)
        worker.run()

        assert attempts(worker, poison) == [1, 2, 3]
        (letter,) = worker.dead_letters
        assert letter.reason == "failed at attempt 3: ValueError: no"
        assert letter.attempts == 3
        assert service.done == [("a", 1)]


@pytest.mark.parametrize("fault", ["drain", "link"])
def test_a_key_is_parked_at_the_last_failure(fault: str) -> None:
    service = Service("park_key")
    with TestWorker(service.app) as worker:
        poison = worker.publish(Step(line="a"))
        successor = worker.publish(Step(line="a", number=1))
        run_until(worker, 3)
        if fault == "drain":
            assert worker.drain() is Finish.DRAINED
        else:
            cut(worker)
        worker.run()

        assert attempts(worker, poison) == [1, 2, 3]
        assert {letter.message_id for letter in worker.parked} == {poison, successor}
        assert worker.parked[0].reason == "failed at attempt 3: ValueError: no"
        assert service.done == []


@pytest.mark.parametrize("fault", ["none", "drain", "link"])
def test_a_halted_shard_is_tried_once_by_whoever_consumes_it_next(fault: str) -> None:
    service = Service("halt_shard")
    with TestWorker(service.app) as worker:
        poison = worker.publish(Step(line="a"))
        worker.publish(Step(line="a", number=1))
        run_until(worker, 3)
        match fault:
            case "none":
                worker.run()
                worker.drain()
            case "drain":
                worker.drain()
            case "link":
                cut(worker)
        worker.runtime_events.clear()
        worker.run()
        assert attempts(worker, poison) == [1, 2, 3, 3]
        worker.drain()
        worker.runtime_events.clear()
        service.mended = True
        worker.run()

        assert attempts(worker, poison) == [1, 2, 3, 3, 3]
        assert service.done == [("a", 0), ("a", 1)]
        assert worker.dead_letters == []


@pytest.mark.parametrize("fault", ["drain", "link"])
def test_in_an_outage_a_last_failure_is_none(fault: str) -> None:
    service = Service(attempts=2)
    with TestWorker(service.app, settings={"outage_after": 3}) as worker:
        for number in range(4):
            worker.publish(Step(line=str(number)))
        run_until(worker, 10)
        assert [type(e) for e in worker.runtime_events].count(OutageBegan) == 1
        if fault == "drain":
            worker.drain()
        else:
            cut(worker)
        service.mended = True
        worker.run()

        assert worker.dead_letters == []
        assert len(service.done) == 4


def test_what_is_given_back_without_having_run_does_not_count() -> None:
    service = Service()
    service.mended = True
    with TestWorker(service.app) as worker:
        ids = [worker.publish(Step(line=str(n))) for n in range(3)]
        for _ in range(5):
            consumer = consumer_of(worker)
            consumer._gatherer.gather()  # as far as to the claims
            consumer._dispatcher.take(worker.clock())
            assert consumer._dialogue.busy
            assert worker.drain() is Finish.DRAINED
        assert worker.executed == []
        worker.run()

        assert [attempts(worker, id_) for id_ in ids] == [[1], [1], [1]]


def test_messages_that_wait_for_another_owner_use_up_no_attempts_of_others() -> None:
    service = Service()
    lines = [f"line-{number}" for number in range(6)]
    with TestWorker(service.app, settings={"prefetch": 8}) as worker:
        theirs = [worker.publish(Step(line=line, number=1)) for line in lines]
        record = record_ids("bank.work")
        store = consumer_of(worker)._store  # another process's claims
        claims = [Claim(record(id_), b"another-0001", b"0000", False) for id_ in theirs]
        store.apply(Batch(claims=claims))
        poison = worker.publish(Step(line="a"))
        run_until(worker, 3)

        assert attempts(worker, poison) == [1, 2, 3]
        worker.run()
        (letter,) = worker.dead_letters
        assert letter.attempts == 3


def test_a_store_that_is_away_is_asked_once_for_all_parked_messages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service = Service("park_key")
    with TestWorker(service.app) as worker:
        worker.publish(Step(line="a"))
        for number in range(1, 21):
            worker.publish(Step(line="a", number=number))
        run_until(worker, 2)
        store = consumer_of(worker)._store  # the fault is there
        asked = []

        def away(*_: object) -> int:
            asked.append(worker.clock())
            raise DedupUnavailable("away")

        with monkeypatch.context() as patch:
            patch.setattr(store, "mark_parked", away)
            run_until(worker, 3)
            for _ in range(50):
                consumer_of(worker).tick(0)
        assert 0 < len(asked) <= 3
        worker.run()

        assert len(worker.parked) == 21
        assert worker.drain() is Finish.DRAINED
