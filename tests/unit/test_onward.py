"""What waits for a revision when the shards change: it goes on in the next generation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from revised import ACCEPT_LATE, WAIT, Price, Shop, publish, reasons
from worker import Context, Reject, Retry, Revisions
from worker.resharding import Resharding
from worker.sharding.generations import Generation, Phase, Plan
from worker.testing import TestWorker
from worker.transport.inbound import Inbound

LONG = Revisions("revision", gap="wait", limit=300)
BEFORE, AFTER = Generation(1, 1), Generation(2, 3)


class Change:
    """A change from one shard to three, step by step."""

    def __init__(self, shop: Shop, worker: TestWorker) -> None:
        self.shop = shop
        self.worker = worker
        self.began = worker.clock()
        self._steps = Resharding(shop.app, worker.settings)
        self.plan = Plan(BEFORE, AFTER, Phase.DECLARE, revision=AFTER.number)

    @property
    def consumer(self) -> Any:
        return self.worker._consumer

    @property
    def drained(self) -> list[str]:
        """The shards of which the consumer says that they are drained."""
        told: list[str] = self.consumer.statistics()["drained"]
        return told

    def seal(self) -> None:
        """Go as far as the markers."""
        self._steps.take(self.plan)
        self.plan = self.plan.advanced()
        self._steps.declare(self.plan)
        self.consumer.follow(self.plan)
        self.plan = self.plan.advanced()
        self._steps.take(self.plan)
        self.plan = self.plan.advanced()

    def tick(self, number: int = 20, seconds: float = 0.01) -> None:
        for _ in range(number):
            while self.consumer.tick(0):
                pass
            self.worker.clock.advance(seconds)

    def go_over(self) -> None:
        """Consume the new generation, and remove the old one."""
        assert self.drained == ["g1.0"]
        self.plan = self.plan.advanced()
        self.consumer.switch(self.plan)
        self.consumer.take({1: 0, 2: 0}, float("inf"))
        self._steps.take(self.plan)
        self.tick()

    @property
    def seconds(self) -> float:
        passed: float = self.worker.clock() - self.began
        return passed


@pytest.fixture(params=[LONG, ACCEPT_LATE], ids=["dead_letter", "accept"])
def change(request: pytest.FixtureRequest) -> Iterator[Change]:
    shop = Shop(request.param)
    with TestWorker(shop.app) as worker:
        worker.run()
        yield Change(shop, worker)


def test_what_waits_goes_on_in_the_next_generation_and_holds_up_no_change(change: Change) -> None:
    publish(change.worker, 1, 3, 4)
    change.tick()
    change.seal()
    publish(change.worker, 2)
    change.tick()
    change.go_over()

    assert change.shop.revisions() == [1, 2, 3, 4]
    assert reasons(change.worker) == []
    assert change.seconds < 2
    assert change.consumer.counters.duplicates == 0


def test_what_comes_too_early_behind_the_seal_but_before_the_marker_goes_on_too(
    change: Change,
) -> None:
    publish(change.worker, 1)
    change.tick()
    publish(change.worker, 3)
    change.seal()
    change.tick()
    publish(change.worker, 2)
    change.go_over()
    assert change.shop.revisions() == [1, 2, 3]


def test_what_is_still_to_come_here_is_waited_for_here(change: Change) -> None:
    """The second revision is tried again in a moment."""
    delays = iter([5.0])

    def ask_for_time(event: Price, _: Context) -> None:
        if event.revision == 2 and (delay := next(delays, None)):
            raise Retry(delay=delay)

    change.shop.meanwhile = ask_for_time
    publish(change.worker, 1, 3, 2)
    change.seal()
    change.tick()
    assert change.drained == []
    change.tick(6, seconds=1)
    assert change.shop.revisions() == [1, 2, 3]
    change.go_over()
    assert change.consumer.counters.duplicates == 0


def test_another_handler_of_it_ends_first_and_does_it_once() -> None:
    shop = Shop(WAIT)
    others: list[int] = []

    def other(event: Price, context: Context) -> None:
        if event.revision == 3 and context.attempt == 1:
            raise Retry(delay=5)
        if event.revision == 4:
            raise Reject("no")
        others.append(event.revision)

    shop.app.on(Price, name="other")(other)
    with TestWorker(shop.app) as worker:
        worker.run()
        change = Change(shop, worker)
        publish(worker, 1, 3, 4)
        change.seal()
        change.tick()
        assert change.drained == []
        assert others == [1]
        change.tick(6, seconds=1)
        change.tick()
        publish(worker, 2)
        change.go_over()

        assert shop.revisions() == [1, 2, 3, 4]
        assert others == [1, 3, 2]
        assert [revision for revision, _ in reasons(worker)] == [4]
        assert change.consumer.counters.duplicates == 2


def test_a_queue_is_drained_once_nothing_of_that_can_be_delivered_again(
    change: Change, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker may not have heard that it is acknowledged."""
    settle, lost = Inbound.settle, list[int]()

    def lose(self: Inbound, *, everything: bool = False, full: bool = False) -> int:
        passed_on = [c for c in self.channels if c.passed_on and c.settlement.finished]
        if passed_on and not lost:
            lost.append(passed_on[0].settlement.finished)
            passed_on[0].settlement.take()
            return 0
        return settle(self, everything=everything, full=full)

    monkeypatch.setattr(Inbound, "settle", lose)
    publish(change.worker, 1, 3)
    change.seal()
    change.tick()
    assert change.drained == ["g1.0"]
    queues = [f"shop.g2.{shard}" for shard in range(AFTER.shards)]
    letters = [each for queue in queues for each in change.worker._tap.look_into(queue)]
    assert [bytes(each.body) for each in letters].count(letters[-1].body) == 2, "it went twice"
    publish(change.worker, 2)
    change.go_over()
    assert change.shop.revisions() == [1, 2, 3]
    assert change.consumer.counters.duplicates == 1
