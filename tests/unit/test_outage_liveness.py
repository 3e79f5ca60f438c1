"""What an outage does to the messages of a service: all of them come to an end, whatever fails."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import pytest

from worker import App, Context, Event, Reject, Retry, RetryPolicy
from worker.dedup.base import Batch, Complete
from worker.errors import BrokerUnreachable
from worker.telemetry import OutageBegan, OutageEnded
from worker.testing import TestWorker

FIVE_ATTEMPTS = RetryPolicy(attempts=5, wait="fixed", first_wait=0.1, jitter=0)


class Job(Event, name="job", key="line"):
    """One of a line of jobs."""

    line: str
    kind: str = ""


def publish(worker: TestWorker, number: int, kind: str = "") -> list[str]:
    """Publish jobs, each on a line of its own; return their ids."""
    return [worker.publish(Job(line=f"{kind}-{n}", kind=kind)) for n in range(number)]


def consumer_of(worker: TestWorker) -> Any:
    return worker._consumer or worker._open()  # to go tick by tick


def go_on(worker: TestWorker, seconds: float) -> None:
    """Let the service work for so long by its own clock."""
    until = worker.clock() + seconds
    while worker.clock() < until:
        consumer = consumer_of(worker)
        if not consumer.tick(0):
            worker.clock.advance_to(min(consumer.next_due, until))


def outages(worker: TestWorker) -> list[type]:
    return [type(e) for e in worker.runtime_events if isinstance(e, OutageBegan | OutageEnded)]


def dead(worker: TestWorker) -> list[str]:
    return sorted(letter.message_id for letter in worker.dead_letters)


class Service:
    """An app whose handler does as it is told."""

    def __init__(self, policy: RetryPolicy = FIVE_ATTEMPTS) -> None:
        self.app = App("bank")
        self.done: list[str] = []
        self.fault: BaseException | None = None
        self.meanwhile: Callable[[], None] = lambda: None
        self.app.on(Job, name="work", retry=policy)(self.work)

    def work(self, event: Job) -> None:
        self.meanwhile()
        if self.fault is not None:
            raise self.fault
        self.done.append(event.event_id)


def test_a_handler_that_fails_the_first_attempts_of_every_message_gets_past_them() -> None:
    app = App("bank")
    done: list[str] = []

    @app.on(Job, retry=FIVE_ATTEMPTS)
    def work(event: Job, context: Context) -> None:
        if context.attempt < 4:
            raise ConnectionError("not yet")
        done.append(event.event_id)

    with TestWorker(app, settings={"outage_after": 5}) as worker:
        ids = publish(worker, 40)
        worker.run()

        assert sorted(done) == sorted(ids)
        assert OutageBegan in outages(worker)
        assert worker.dead_letters == []


def test_an_outage_of_any_length_gives_no_message_up() -> None:
    service = Service()
    service.fault = ConnectionError("down")

    with TestWorker(service.app, settings={"outage_after": 5}) as worker:
        ids = publish(worker, 5)
        go_on(worker, 1800)
        assert min(Counter(each.event_id for each in worker.executed).values()) > 10
        service.fault = None
        worker.run()

        assert sorted(service.done) == sorted(ids)
        assert dead(worker) == []
        assert outages(worker) == [OutageBegan, OutageEnded]


def test_the_messages_are_probed_to_their_last_attempt_one_after_the_other() -> None:
    service = Service()
    service.fault = ConnectionError("down")

    with TestWorker(service.app, settings={"outage_after": 3, "concurrency": 1}) as worker:
        publish(worker, 4)
        go_on(worker, 1800)

        attempts = defaultdict(list)
        for _, id_, attempt in worker.executed:
            attempts[id_].append(attempt)
        for each in attempts.values():
            assert each[:5] == [1, 2, 3, 4, 5]
            assert set(each[5:]) == {5}, "none is used up"
        numbers = [len(each) for each in attempts.values()]
        assert max(numbers) - min(numbers) <= 1, "they take turns"


def test_where_only_poison_is_left_its_retry_policy_decides() -> None:
    app = App("bank")
    done: list[str] = []
    seen: set[str] = set()

    @app.on(Job, retry=FIVE_ATTEMPTS)
    def work(event: Job) -> None:
        seen.add(event.event_id)
        if event.kind == "bad" or len(seen) < 5:
            raise ValueError("poison, or the outage that makes it look like one")
        done.append(event.event_id)

    with TestWorker(app, settings={"outage_after": 5, "concurrency": 1}) as worker:
        bad = publish(worker, 3, "bad")
        good = publish(worker, 2)
        good += [worker.publish(Job(line="bad-0")) for _ in range(30)]
        worker.run()

        assert sorted(done) == sorted(good)
        assert dead(worker) == sorted(bad)
        assert {letter.attempts for letter in worker.dead_letters} == {5}


@pytest.mark.parametrize("attempts", [1, 2, 5])
def test_nothing_but_poison_ends_too(attempts: int) -> None:
    service = Service(RetryPolicy(attempts=attempts))
    service.fault = ValueError("poison")

    with TestWorker(service.app, settings={"outage_after": 5, "prefetch": 4}) as worker:
        ids = publish(worker, 12)
        worker.run()

        assert dead(worker) == sorted(ids)
        assert outages(worker)[0] is OutageBegan
        assert outages(worker)[-1] is OutageEnded
        assert consumer_of(worker).statistics()["outages"] == []


def test_after_poison_the_next_failure_is_an_outage_at_once_and_a_success_ends_the_suspicion() -> (
    None
):
    service = Service(RetryPolicy(attempts=2))
    service.fault = ValueError("poison")

    with TestWorker(service.app, settings={"outage_after": 5, "prefetch": 4}) as worker:
        publish(worker, 6)
        worker.run()
        assert outages(worker) == [OutageBegan, OutageEnded]
        worker.publish(Job(line="next"))
        worker.run()
        assert outages(worker) == [OutageBegan, OutageEnded] * 2
        service.fault = None
        worker.publish(Job(line="good"))
        worker.run()
        service.fault = ValueError("poison")
        worker.publish(Job(line="another"))
        worker.run()

        assert outages(worker) == [OutageBegan, OutageEnded] * 2


def test_asking_for_a_retry_is_no_failure() -> None:
    app = App("bank")

    @app.on(Job, retry=FIVE_ATTEMPTS)
    def work(event: Job, context: Context) -> None:
        if context.attempt < 4:
            raise Retry(delay=1)

    with TestWorker(app, settings={"outage_after": 2}) as worker:
        ids = publish(worker, 10)
        worker.run()

        assert outages(worker) == []
        assert len(worker.executed) == 4 * len(ids)
        assert dead(worker) == []


def test_asking_for_ever_ends_by_the_retry_policy_in_an_outage_too() -> None:
    app = App("bank")

    @app.on(Job, retry=FIVE_ATTEMPTS)
    def work(event: Job) -> None:
        if event.kind == "asks":
            raise Retry(delay=1)
        raise ConnectionError("down")

    with TestWorker(app, settings={"outage_after": 3}) as worker:
        publish(worker, 5)
        asking = publish(worker, 5, "asks")
        go_on(worker, 1800)

        assert dead(worker) == sorted(asking)
        assert outages(worker) == [OutageBegan]


@pytest.mark.parametrize("what", ["duplicate", "retry", "reject", "link", "parked", "drain"])
def test_however_probes_end_the_next_ones_go_out(what: str) -> None:
    service = Service()
    service.fault = ConnectionError("down")

    with TestWorker(service.app, settings={"outage_after": 3, "concurrency": 1}) as worker:
        early = publish(worker, 6)
        go_on(worker, 3)
        assert outages(worker) == [OutageBegan]
        consumer = consumer_of(worker)
        lanes = consumer._dispatcher.lanes  # the internals at fault
        waiting = [task for _, tasks in lanes.waiting_for("work") for task in tasks]
        match what:
            case "duplicate":
                for task in waiting:
                    done = Complete(task.record, b"another one", task.delivery.fingerprint)
                    worker.store.apply(Batch(completes=[done]))
            case "retry":
                service.fault = Retry(delay=3600)
            case "reject":
                service.fault = Reject("no")
            case "link":
                service.meanwhile = lambda: consumer._link_lost(BrokerUnreachable("cut"))
            case "parked":
                for task in waiting:
                    consumer._detour._parking.park(task.message)
            case "drain":
                worker.drain()
        go_on(worker, 100)
        service.fault, service.meanwhile = None, lambda: None
        late = publish(worker, 3, "late")
        worker.run()

        ended = {*service.done, *dead(worker), *(letter.message_id for letter in worker.parked)}
        assert set(late) <= set(service.done)
        if what == "duplicate":
            assert ended == set(late)
        else:
            assert ended == {*early, *late}
        assert consumer_of(worker).statistics()["outages"] == []
