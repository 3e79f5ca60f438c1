"""Letters on their way while the number of shards changes: none lost, each key in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from worker import App, Event, RetryPolicy
from worker.codec import Codec
from worker.deadletters import Box
from worker.ids import new_id
from worker.leases.base import LeaseOptions
from worker.leases.open import open_leases
from worker.message import UNPARK_HEADER
from worker.parking import MARKER, parked_keys
from worker.replay import Replay, Replayed
from worker.resharding import Resharding
from worker.retry import Exhausted
from worker.sharding.generations import PLAN, Generation, Phase, Plan
from worker.testing import FakeClock, TestWorker
from worker.topology import dead_letter_queue

#: Enough for whatever a few messages need.
_TICKS = 50
#: Enough to find old queues empty, in which a marker was, and to find them so again.
_LOOKS = 3


class Step(Event, name="step", key="line"):
    """One of a sequence."""

    line: str
    number: int = 0


class Service:
    """A service of one shard that fails until it is mended, on its way to three shards."""

    def __init__(self, folder: Path, exhausted: Exhausted) -> None:
        self.app = App("bank")
        self.done: list[tuple[str, int]] = []
        self.mended = False
        retry = RetryPolicy(attempts=1, exhausted=exhausted)
        self.app.on(Step, name="work", retry=retry)(self.work)
        self.observed: list[int] = []
        if exhausted == "dead_letter":
            self.app.on(Step, name="observe")(self.observe)
        url = f"sqlite:///{folder / 'leases.db'}"
        self.leases = open_leases(url, LeaseOptions())
        self.plan = Plan(Generation(1, 1))
        self.leases.write("bank", PLAN, 0, self.plan.dump())
        self.worker = TestWorker(self.app, settings={"leases": url})

    def work(self, event: Step) -> None:
        if not self.mended:
            raise ValueError("no")
        self.done.append((event.line, event.number))

    def observe(self, event: Step) -> None:
        self.observed.append(event.number)

    def publish(self, *numbers: int) -> None:
        for number in numbers:
            self.worker.publish(Step(line="K", number=number))
        self.run()

    def run(self) -> None:
        """Let the consumer do what there is: a marker that it stops at never ends a real run."""
        consumer: Any = self.worker._consumer
        for _ in range(_TICKS):
            consumer.tick(0)
            self.worker.clock.advance(0.1)

    def change(self, upto: Phase | None) -> None:
        """Take the steps until this one is the next; None: until nothing is left to do."""
        clock = FakeClock()
        steps = Resharding(self.app, self.worker.settings, clock)
        consumer: Any = self.worker._consumer

        def take() -> bool:
            clock.advance(10.0)
            return steps.take(self.plan)

        if self.plan.target is None:
            self._agree(self.plan.reshard(3))
        while self.plan.phase is not upto:
            if self.plan.phase is Phase.BIND:
                steps.declare(self.plan)
                consumer.follow(self.plan)
            if self.plan.phase is Phase.DRAIN:
                self.run()
                assert consumer.statistics()["drained"]
                consumer.give([0])
                self.run()
            if self.plan.phase is Phase.REMOVE:
                consumer.switch(self.plan)
                consumer.take(dict.fromkeys(range(3), 0), float("inf"))
                consumer.tick(0)
            looks = _LOOKS if self.plan.phase is Phase.REMOVE else 1
            assert any(take() for _ in range(looks))
            self._agree(self.plan.advanced())

    def _agree(self, plan: Plan) -> None:
        version = self.leases.look("bank").documents[PLAN].version
        assert self.leases.write("bank", PLAN, version, plan.dump())
        self.plan = plan

    def replay(self) -> Replay:
        return Replay("bank", self.worker.settings, self.worker.store, self.app)

    def return_letters(self, replay: Replay) -> Replayed:
        codec = Codec.of("bank", self.worker.settings)
        with Box(dead_letter_queue("bank"), codec, self.worker.settings) as box:
            return replay.letters(box, box.read())


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[[Exhausted], Service]]:
    """Make services whose first three steps were set aside."""
    made: list[Service] = []

    def make(exhausted: Exhausted) -> Service:
        service = Service(tmp_path, exhausted)
        made.append(service)
        service.worker.__enter__()
        service.publish(0, 1, 2)
        service.mended = True
        return service

    yield make
    for service in made:
        service.worker.__exit__(None, None, None)
        service.leases.close()


def meanwhile(replay: Replay, *, before: Any = None, after: Any = None) -> None:
    """Let something happen right before, or after, the first messages are sent."""
    send, waiting = replay._send, [None]

    def sending(*args: Any) -> Any:
        first = bool(waiting)
        waiting.clear()
        if first and before is not None:
            before()
        errors = send(*args)
        if first and after is not None:
            after()
        return errors

    replay._send = sending  # type: ignore[method-assign, assignment]  # for the length of a test


def test_dead_letters_whose_queue_is_sealed_behind_them_take_effect_once(
    make: Callable[[Exhausted], Service],
) -> None:
    service = make("dead_letter")
    with service.replay() as replay:
        meanwhile(replay, after=lambda: service.change(Phase.DRAIN))
        assert service.return_letters(replay).returned == 3

    service.change(None)
    service.run()
    assert sorted(service.done) == [("K", 0), ("K", 1), ("K", 2)]
    assert service.worker.dead_letters == []


def test_dead_letters_whose_queue_is_gone_before_they_come_are_sent_to_the_new_one(
    make: Callable[[Exhausted], Service],
) -> None:
    service = make("dead_letter")
    with service.replay() as replay:
        replay._places.of_key("K")  # what is published is known from here on
        meanwhile(replay, before=lambda: service.change(None))
        assert service.return_letters(replay).returned == 3

    service.run()
    assert sorted(service.done) == [("K", 0), ("K", 1), ("K", 2)]
    assert service.worker.dead_letters == []


def test_a_dead_letter_that_is_moved_on_is_for_its_handler_alone(
    make: Callable[[Exhausted], Service],
) -> None:
    service = make("dead_letter")
    assert service.observed == [0, 1, 2]
    service.worker.clock.advance(2 * service.worker.settings.retention)  # which is forgotten
    service.change(Phase.DRAIN)
    with service.replay() as replay:
        replay._places._plans = {"bank": Plan(Generation(1, 1))}  # out of date
        replay._places.moved = lambda: False  # type: ignore[method-assign]  # as above
        assert service.return_letters(replay).returned == 3
    service.change(None)
    service.run()

    assert sorted(service.done) == [("K", 0), ("K", 1), ("K", 2)]
    assert service.observed == [0, 1, 2]


@pytest.mark.parametrize("phase", [Phase.SEAL, Phase.DRAIN])
def test_a_parked_key_waits_while_old_queues_are_drained(
    make: Callable[[Exhausted], Service], phase: Phase
) -> None:
    service = make("park_key")
    service.change(Phase.DRAIN if phase is Phase.DRAIN else Phase.SEAL)
    with service.replay() as replay:
        told = replay.key("K", "replay-1", 0.0)

        assert (told.between, told.returned, told.freed) == (True, 0, False)
        assert len(service.worker.parked) == 3

    service.change(None)
    with service.replay() as replay:
        assert replay.key("K", "replay-2", 0.0).returned == 3
    service.run()
    assert service.done == [("K", 0), ("K", 1), ("K", 2)]
    assert parked_keys(service.worker.store, "bank") == {}


@pytest.mark.parametrize("fails_again", [False, True])
def test_a_parked_key_whose_queue_is_sealed_behind_it_keeps_its_order(
    make: Callable[[Exhausted], Service], *, fails_again: bool
) -> None:
    service = make("park_key")
    with service.replay() as replay:
        meanwhile(replay, after=lambda: service.change(Phase.DRAIN))
        assert replay.key("K", "replay-1", 0.0).between
    assert len(service.worker.parked) == 3, "nothing was removed: it is sent once more"

    service.publish(3)
    service.mended = not fails_again
    service.change(None)
    service.run()
    service.mended = True
    for attempt in range(2, 5):
        with service.replay() as replay:
            replay.key("K", f"replay-{attempt}", 0.0)
        service.run()
    assert service.done == [("K", number) for number in range(4)]
    assert parked_keys(service.worker.store, "bank") == {}
    assert service.worker.parked == []


def test_a_letter_that_comes_back_while_the_replay_still_reads_is_not_lost(
    make: Callable[[Exhausted], Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = make("dead_letter")
    service.mended = False
    codec = Codec.of("bank", service.worker.settings)
    monkeypatch.setattr("worker.replay._BATCH", 3)
    with service.replay() as replay:
        meanwhile(replay, after=service.run)
        with Box(dead_letter_queue("bank"), codec, service.worker.settings) as box:
            box.unread += 3  # as where somebody else has some of those that were counted
            assert replay.letters(box, box.read()).returned == 6

    service.run()
    assert [letter.handler for letter in service.worker.dead_letters] == ["work"] * 3


@pytest.mark.parametrize(("exchange", "is_marker"), [("bank.g1", True), ("qw.events", False)])
def test_a_marker_that_a_broker_set_aside_is_one_still(
    make: Callable[[Exhausted], Service], exchange: str, is_marker: bool
) -> None:
    """Unlike somebody's event of that name. It had come by the front, as there was no plan."""
    service = make("park_key")
    ((key, upto),) = parked_keys(service.worker.store, "bank").items()
    codec = Codec.of("bank", service.worker.settings)
    headers = {UNPARK_HEADER: upto}
    marker = codec.pack(MARKER, b"{}", message_id=new_id(), key=key, headers=headers)
    death = {"queue": "bank.g1.0", "exchange": exchange, "reason": "maxlen", "count": 1}
    marker.headers["x-death"] = [death]
    marker.exchange, marker.routing_key = "", dead_letter_queue("bank")
    with service.replay() as replay:
        assert replay._send(None, [marker]) == [None]
        assert service.return_letters(replay).returned == 1
    service.run()
    assert (parked_keys(service.worker.store, "bank") == {}) == is_marker
