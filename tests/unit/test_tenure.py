"""A shard is consumed from its taking until nothing of it is left; then somebody else has it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from random import Random
from typing import Any

import pytest

from worker import App, Command, Context, Event, Retry, RetryPolicy
from worker.consumer import Consumer
from worker.dedup.base import Answers, Batch
from worker.dedup.memory import MemoryStore
from worker.ending import Finish
from worker.errors import BrokerUnreachable, DedupUnavailable
from worker.leases.base import lease_clock
from worker.message import UNPARK_HEADER
from worker.parking import FIRST, MARKER, UNPARKED, parked_keys
from worker.pool.aio import LoopPool
from worker.pool.threads import ThreadPool
from worker.replay import Replay, Unparked
from worker.retry import Exhausted
from worker.telemetry import LeaseOutlived, ShardsLapsed, SuspectFound
from worker.testing import TestWorker
from worker.testing.pools import INLINE
from worker.transport.capabilities import connect

THREADS: Any = (ThreadPool, LoopPool)
FOREVER = float("inf")
PATIENCE = 20.0
MIDDLE = 30.0
#: More than two clocks drift apart while they are read.
LITTLE = 0.01


class Step(Event, name="step", key="line"):
    """One of a sequence."""

    line: str
    number: int = 0


class Mail(Command, name="mail.send", to="mailer", key="line"):
    """What a handler publishes."""

    line: str


class Store(MemoryStore):
    """One that can be away."""

    away = False
    forgetful = False

    def apply(self, batch: Batch) -> Answers:
        if self.away:
            raise DedupUnavailable("it is away")
        return super().apply(batch)

    def mark_parked(self, service: str, key: str, at: int) -> None:
        if self.away or (self.forgetful and key):  # without a key: that it knows them all
            raise DedupUnavailable("it is away")
        super().mark_parked(service, key, at)


class Gate:
    """What a handler waits for, where it shall take long."""

    def __init__(self) -> None:
        self.closed_for: set[int] = set()
        self._open = threading.Event()

    def open(self) -> None:
        self._open.set()

    def wait(self, number: int) -> None:
        if number in self.closed_for:
            self._open.wait(PATIENCE)


class Peer:
    """A consumer, and what it gave."""

    def __init__(self, bank: Bank, pools: Any) -> None:
        self.bank = bank
        self.given: list[list[int]] = []
        #: What waited in the queue of each shard when it was given.
        self.left: dict[int, int] = {}
        self.consumer: Any = Consumer(
            bank.worker.app,
            bank.worker.settings,
            store=bank.worker.store,
            clock=bank.worker.clock,
            random=Random(0),
            pools=pools,
        )
        self.consumer.on_given = self._note
        self.consumer.open()

    def _note(self, shards: list[int]) -> None:
        self.given.append(shards)
        self.left |= {shard: self.bank.depth(shard) for shard in shards}

    def take(self, *shards: int, fence: int = 17, trusted: float = FOREVER) -> None:
        self.consumer.take(dict.fromkeys(shards, fence), trusted)

    def tick(self, times: int = 10) -> None:
        for _ in range(times):
            self.consumer.tick(0)

    def tick_until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, self.consumer.statistics()
            self.consumer.tick(0.01)

    def tick_until_given(self, *shards: int) -> None:
        self.tick_until(lambda: self.given)
        assert sorted(shard for some in self.given for shard in some) == sorted(shards)

    def hurry(self) -> None:
        """Make it believe that handlers are quick: what it claims ahead, and its runs, are long."""
        dispatcher = self.consumer._dispatcher
        dispatcher._rate, dispatcher._seconds = 1e6, 0.0
        dispatcher.measure = lambda _now: None
        dispatcher.collect_early = lambda _resolve: None

    @property
    def channels(self) -> dict[int, bool]:
        """The shards that it knows a channel of, and whether it is open."""
        return {channel.shard: not channel.closed for channel in self.consumer._link.channels}


class Bank:
    """An app with two shards, its broker and its store, and who consumes it."""

    def __init__(self, worker: TestWorker) -> None:
        self.worker = worker
        self.peers: list[Peer] = []
        worker.drain()  # its own consumer
        worker.store.__class__ = Store
        self.store: Any = worker.store
        topology = worker.app.topology(worker.settings)
        self._queues = topology.shard_queues
        self._connection = connect(worker.settings.broker, heartbeat=0, timeout=5, name="test")
        #: Some keys of each shard.
        self.keys: tuple[list[str], list[str]] = [], []
        for number in range(16):
            self.worker.publish(Step(line=f"k{number}"))
            self.keys[int(self._purge(0) == 0)].append(f"k{number}")
            self._purge(1)

    def peer(self, pools: Any = INLINE) -> Peer:
        self.peers.append(Peer(self, pools))
        return self.peers[-1]

    def queue(self, shard: int) -> str:
        return str(self._queues[shard])

    def _purge(self, shard: int) -> int:
        with closing(self._connection.channel()) as channel:
            return int(channel.queue_purge(self.queue(shard)))

    def depth(self, shard: int) -> int:
        with closing(self._connection.channel()) as channel:
            return int(channel.queue_declare(self.queue(shard), passive=True).message_count)

    def publish(self, shard: int, *numbers: int, key: int = 0) -> str:
        """Publish steps of one key of a shard; return the key."""
        line = self.keys[shard][key]
        for number in numbers:
            self.worker.publish(Step(line=line, number=number))
        return line

    def later(self, seconds: float) -> float:
        """Return the reading of the clock of leases in so many seconds of the test's clock."""
        return float(self.worker.clock()) + seconds + lease_clock() - time.monotonic() + LITTLE

    def events(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.worker.runtime_events if isinstance(event, kind)]

    def close(self) -> None:
        for peer in self.peers:
            peer.consumer.close()
        self._connection.release()


class Service:
    """An app whose handler notes what it did, and with which fence."""

    def __init__(self, **options: Any) -> None:
        self.gate = Gate()
        self.begun: list[int] = []
        self.done: list[int] = []
        self.fences: list[int] = []
        self.attempts: list[int] = []
        #: Called in the handler.
        self.does: Callable[[Step, Context], None] = lambda _step, _context: None
        self.app = App("bank")

        @self.app.on(Step, name="work", **options)
        def work(event: Step, context: Context) -> None:
            self._begin(event, context)
            self.gate.wait(event.number)
            self.does(event, context)
            self.done.append(event.number)

    def make_async(self) -> None:
        """Make its handler a coroutine."""
        self.app = App("bank")

        @self.app.on(Step, name="work")
        async def work(event: Step, context: Context) -> None:
            self._begin(event, context)
            await asyncio.to_thread(self.gate.wait, event.number)
            self.done.append(event.number)

    def _begin(self, event: Step, context: Context) -> None:
        self.begun.append(event.number)
        self.fences.append(context.fence)
        self.attempts.append(context.attempt)


@pytest.fixture
def service() -> Iterator[Service]:
    """Its handlers end with the test."""
    made = Service()
    yield made
    made.gate.open()


@contextmanager
def bank_of(service: Service, **settings: Any) -> Iterator[Bank]:
    """Open a bank, with a clock that stands still."""
    given = {"shards": 2, "retention": 86400.0, **settings}
    with TestWorker(service.app, settings=given) as worker:
        bank = Bank(worker)
        try:
            yield bank
        finally:
            service.gate.open()
            bank.close()


def held_up(service: Service, bank: Bank, *shards: int, trusted: float = FOREVER) -> Peer:
    """Return a peer whose handler runs until the gate opens, with two more claimed behind it."""
    service.gate.closed_for = {0}
    peer = bank.peer(THREADS)
    peer.take(*shards, trusted=trusted)
    peer.hurry()
    bank.publish(0, 0, 1, 2)
    peer.tick_until(lambda: service.begun)
    return peer


# Giving


def test_a_shard_that_is_given_begins_nothing_finishes_what_runs_and_goes_on_elsewhere(
    service: Service,
) -> None:
    service.gate.closed_for = {0}
    with bank_of(service) as bank:
        ann = bank.peer(THREADS)
        ann.take(0, 1, fence=17)
        ann.hurry()
        bank.publish(0, 0, 1, 2, 3)
        bank.publish(0, 10, 11, key=1)
        ann.tick_until(lambda: 0 in service.begun and 11 in service.done)

        bank.publish(0, 12, 13, key=1)
        ann.consumer.give([0])
        bank.publish(0, 14, key=1)
        bank.publish(1, 20, 21)
        ann.tick_until(lambda: 21 in service.done)
        assert ann.given == [], "a handler of it runs"
        assert ann.channels == {0: True, 1: True}, "never closed before it is acknowledged"
        assert {*service.begun} == {0, 10, 11, 20, 21}
        service.gate.open()
        ann.tick_until_given(0)

        assert ann.left == {0: 6}, "what was done is acknowledged, all else is back"
        assert ann.channels == {1: True}
        bob = bank.peer()
        bob.take(0, fence=18)
        bob.tick_until(lambda: len(service.done) == 11)
        assert [n for n in service.begun if n < 10] == [0, 1, 2, 3]
        assert [n for n in service.begun if 10 <= n < 20] == [10, 11, 12, 13, 14]
        assert {*service.attempts} == {1}
        assert {*service.fences[:5]} == {17}
        assert {*service.fences[5:]} == {18}
        bob.tick()
        ann.tick()
        assert len(service.begun) == 11
        assert (bank.depth(0), ann.given, bob.given) == (0, [[0]], [])


def test_what_is_claimed_and_has_not_begun_is_anybodys_at_once(service: Service) -> None:
    with bank_of(service, concurrency=1) as bank:
        ann = held_up(service, bank, 0)
        (run,) = ann.consumer._dispatcher.out
        assert len(run.tasks) == 3

        ann.consumer.give([0])
        service.gate.open()
        ann.tick_until_given(0)
        assert service.begun == [0]
        bob = bank.peer()
        bob.take(0)
        bob.tick()  # the clock stands still: nobody waits for a claim to end

        assert service.done == [0, 1, 2]
        assert service.attempts == [1, 1, 1]
        assert bank.events(SuspectFound) == []


@pytest.mark.parametrize("is_async", [False, True], ids=["plain", "coroutine"])
@pytest.mark.parametrize("how", ["give", "lose"])
def test_what_waits_behind_a_long_handler_of_another_shard_comes_back_at_once(
    is_async: bool, how: str
) -> None:
    service = Service()
    if is_async:
        service.make_async()
    service.gate.closed_for = {0}
    with bank_of(service, concurrency=1) as bank:
        ann = bank.peer(THREADS)
        ann.take(0, 1)
        ann.hurry()
        bank.publish(0, 0)
        ann.tick_until(lambda: service.begun)
        bank.publish(1, 20, 21)
        bank.publish(1, 30, key=1)
        bank.publish(0, 40, key=1)
        ann.tick_until(lambda: len(ann.consumer._dispatcher.out) == 4)

        getattr(ann.consumer, how)([1])
        ann.tick_until_given(1)
        assert service.begun == [0]
        bob = bank.peer(THREADS)
        bob.take(1)
        bob.tick_until(lambda: len(service.done) == 3)

        assert sorted(service.begun) == [0, 20, 21, 30]
        assert {*service.attempts} == {1}
        service.gate.open()
        ann.tick_until(lambda: {0, 40} <= {*service.done})
        assert bank.events(LeaseOutlived) == []


def test_a_shard_without_work_is_given_with_the_next_tick(service: Service) -> None:
    with bank_of(service) as bank:
        ann = bank.peer()
        ann.take(0, 1)
        ann.tick()

        ann.consumer.give([1])
        ann.tick(1)

        assert ann.given == [[1]]
        assert ann.channels == {0: True}


def test_what_it_does_not_have_it_does_not_give(service: Service) -> None:
    with bank_of(service) as bank:
        ann = bank.peer()
        ann.take(0)
        ann.consumer.give([1])
        ann.consumer.lose([1])
        ann.tick()
        assert ann.given == []

        ann.consumer.give([0])
        ann.consumer.give([0, 1])
        ann.tick()
        ann.consumer.give([0])
        ann.tick()
        assert ann.given == [[0]]


def test_a_shard_may_come_back_after_it_was_given(service: Service) -> None:
    with bank_of(service) as bank:
        ann = bank.peer()
        for number in range(5):
            ann.take(0, fence=17 + number)
            bank.publish(0, number)
            ann.tick()
            ann.consumer.give([0])
            ann.tick()

        assert service.begun == [0, 1, 2, 3, 4]
        assert service.fences == [17, 18, 19, 20, 21]
        assert ann.given == [[0]] * 5
        assert ann.channels == {}


def test_a_retry_that_waits_in_memory_waits_on_in_the_next_process(service: Service) -> None:
    def fail(step: Step, context: Context) -> None:
        if step.number == 0 and context.attempt == 1:
            raise Retry(delay=MIDDLE)

    service.does = fail
    with bank_of(service) as bank:
        ann, bob = bank.peer(), bank.peer()
        ann.take(0)
        bank.publish(0, 0, 1)
        ann.tick()
        assert service.begun == [0]

        ann.consumer.give([0])
        ann.tick()
        assert ann.given == [[0]], "nothing of it runs"
        bob.take(0)
        bob.tick()
        bank.worker.clock.advance(MIDDLE - 1)
        bob.tick()
        assert service.begun == [0], "nor does its successor pass it"
        ann.tick()  # whose timers are no longer of any concern
        bank.worker.clock.advance(2)
        for peer in (bob, ann, bob):
            peer.tick()

        assert service.begun == [0, 0, 1]
        assert service.attempts == [1, 2, 1]


def test_a_timer_of_before_lets_nothing_go_that_waits_again(service: Service) -> None:
    """It was taken again by the process that had it, and waits there for other reasons."""

    def fail(step: Step, context: Context) -> None:
        if step.number == 0 and context.attempt < 4:
            raise Retry(delay=MIDDLE)

    service.does = fail
    with bank_of(service) as bank:
        ann = bank.peer()
        bank.publish(0, 0, 1)
        for attempt in (1, 2, 3):
            ann.take(0)
            ann.tick()
            assert service.attempts == [*range(1, attempt + 1)]
            bank.worker.clock.advance(MIDDLE / 2)
            ann.consumer.give([0])
            ann.tick()
            ann.take(0)
            ann.tick()
            assert len(service.begun) == attempt
            ann.consumer.give([0])
            ann.tick()
            bank.worker.clock.advance(MIDDLE / 2)
        ann.take(0)
        ann.tick()

        assert service.begun == [0, 0, 0, 0, 1]


def test_children_that_are_not_confirmed_keep_the_shard(service: Service) -> None:
    def mail(step: Step, context: Context) -> None:
        context.publish(Mail(line=step.line))

    service.does = mail
    with bank_of(service) as bank:
        bank.worker._tap.welcome_commands()
        ann = bank.peer()
        ann.take(0)
        ann.tick()
        outbound = ann.consumer._link._outbound
        outbound.pump, pump = list, outbound.pump  # as if the broker did not confirm
        bank.publish(0, 0, 1)
        ann.tick()
        assert service.begun == [0]

        ann.consumer.give([0])
        ann.tick()
        assert ann.given == []
        outbound.pump = pump
        ann.tick_until_given(0)

        assert len(bank.worker.published) == 1
        assert ann.left == {0: 1}
        bob = bank.peer()
        bob.take(0)
        bob.tick()
        assert service.begun == [0, 1]


def test_a_key_that_is_parked_keeps_the_shard_until_that_is_known_to_all() -> None:
    service = Service(retry=RetryPolicy(attempts=1, exhausted="park_key"))

    def fail(step: Step, _context: Context) -> None:
        if step.number == 0:
            raise ValueError("no")

    service.does = fail
    with bank_of(service) as bank:
        ann = bank.peer()
        ann.take(0)
        bank.store.forgetful = True
        bank.publish(0, 0)
        ann.tick()
        bank.publish(0, 1)
        ann.consumer.give([0])
        ann.tick()
        assert ann.given == []

        bank.store.forgetful = False
        bank.worker.clock.advance(1.5)
        ann.tick_until_given(0)
        assert ann.left == {0: 1}
        bob = bank.peer()
        bob.take(0)
        bob.tick()

        assert service.begun == [0]
        assert [letter.reason.split(":")[0] for letter in bank.worker.parked] == [
            "failed at attempt 1",
            "its key is parked",
        ]


def test_a_replay_that_is_interrupted_leaves_its_key_parked() -> None:
    """Its marker stands behind messages that went back: the key is not free before they ran."""
    service = Service()
    with bank_of(service) as bank:
        service.gate.closed_for = {0}
        ann = bank.peer(THREADS)
        line = bank.keys[0][0]
        bank.store.mark_parked("bank", line, 5)
        ann.take(0)
        ann.hurry()
        ann.consumer._dispatcher._seconds = 1.0  # so that one runs at a time
        for number in range(3):
            replay(bank, line, f"m{number}", number)
        mark(bank, line)
        ann.tick_until(lambda: service.begun)
        ann.tick()  # the marker has come, and waits

        ann.consumer.give([0])
        service.gate.open()
        while not ann.given:
            bank.worker.clock.advance(0.1)  # the marker looks again and again
            ann.tick_until(lambda: True)
            ann.consumer.tick(0.01)
        assert service.begun == [0]
        assert parked_keys(bank.store, "bank") == {line: 5}
        assert ann.left == {0: 3}, "and it went back with them"


def replay(bank: Bank, line: str, message_id: str, number: int) -> None:
    """Send a parked message back, as ``qworker dlq replay --key`` does."""
    bank.worker.publish_raw(
        f'{{"line": "{line}", "number": {number}}}',
        name="step",
        id=message_id,
        key=line,
        headers={UNPARKED: "replay", **({FIRST: 5} if number == 0 else {})},
        exchange="",
        routing_key=bank.queue(0),
    )


def mark(bank: Bank, line: str) -> None:
    bank.worker.publish_raw(
        "{}", name=MARKER, id="mark", key=line, headers={UNPARK_HEADER: 5}, exchange="",
        routing_key=bank.queue(0),
    )  # fmt: skip


def test_while_the_store_is_away_nothing_is_given_that_it_has_to_hear_of(service: Service) -> None:
    service.gate.closed_for = {0}
    with bank_of(service) as bank:
        ann = bank.peer(THREADS)
        ann.take(0, 1)
        bank.publish(0, 0)
        ann.tick_until(lambda: service.begun)

        bank.store.away = True
        ann.consumer.give([0, 1])
        ann.tick()
        assert ann.given == [[1]], "of that it knows everything"
        service.gate.open()
        ann.tick_until(lambda: service.done)
        ann.tick_until(lambda: ann.consumer._dialogue.away_since is not None)
        ann.tick()
        assert ann.given == [[1]]
        bank.store.away = False
        bank.worker.clock.advance(1.5)
        ann.tick_until(lambda: len(ann.given) == 2)

        assert ann.left[0] == 0
        bob = bank.peer()
        bob.take(0)
        bob.tick()
        assert service.begun == [0]


def test_a_lost_connection_holds_nothing(service: Service) -> None:
    service.gate.closed_for = {0}
    with bank_of(service) as bank:
        ann = bank.peer(THREADS)
        ann.take(0, 1)
        bank.publish(0, 0, 1)
        ann.tick_until(lambda: service.begun)
        link = ann.consumer._link
        link.open, reopen = unreachable, link.open
        ann.consumer._link_lost(BrokerUnreachable("it was cut"))
        ann.tick()

        ann.consumer.give([0, 1])
        ann.tick()
        assert ann.given == [[1]], "a handler of the other runs"
        service.gate.open()
        ann.tick_until(lambda: len(ann.given) == 2)
        ann.take(1, fence=20)
        link.open = reopen
        bank.worker.clock.advance(10)
        ann.tick()

        assert ann.channels == {1: True}
        assert bank.depth(0) == 2
        bob = bank.peer()
        bob.take(0)
        bob.tick()
        assert service.begun == [0, 1], "what was done is a duplicate"
        assert bank.depth(0) == 0


def unreachable(**_: object) -> None:
    raise BrokerUnreachable("it is away")


def test_a_connection_that_breaks_at_the_last_step_gives_all_the_same(service: Service) -> None:
    with bank_of(service) as bank:
        ann = bank.peer()
        ann.take(0, 1)
        bank.publish(0, 0)
        ann.tick(1)
        inbound = ann.consumer._link._inbound

        def cut(_channel: Any) -> None:
            raise BrokerUnreachable("it was cut")

        inbound.close_channel = cut
        ann.consumer.give([0])
        ann.tick()

        assert ann.given == [[0]]
        bank.worker.clock.advance(10)
        ann.tick()
        assert ann.channels == {1: True}


def test_a_shard_that_is_halted_can_be_given_and_is_tried_again_where_it_is_taken() -> None:
    service = Service(retry=RetryPolicy(attempts=1, exhausted="halt_shard"))

    def fail(_step: Step, _context: Context) -> None:
        raise ValueError("no")

    service.does = fail
    with bank_of(service) as bank:
        ann, bob = bank.peer(), bank.peer()
        ann.take(0)
        bank.publish(0, 0, 1)
        ann.tick()
        assert ann.consumer.statistics()["halted"] == 1
        assert service.begun == [0]

        ann.consumer.give([0])
        ann.tick()
        assert ann.given == [[0]]
        assert ann.consumer.statistics()["halted"] == 0
        service.does = lambda _step, _context: None
        bob.take(0)
        bob.tick()

        assert service.done == [0, 1]


def test_a_drain_finds_shards_that_are_being_given(service: Service) -> None:
    service.gate.closed_for = {0}
    with bank_of(service) as bank:
        ann = bank.peer(THREADS)
        ann.take(0, 1)
        bank.publish(0, 0, 1)
        ann.tick_until(lambda: service.begun)
        ann.consumer.give([0])
        ann.consumer.drain(bank.worker.clock() + 25)
        ann.tick()
        assert ann.consumer.ended is None

        service.gate.open()
        ann.tick_until(lambda: ann.consumer.ended)

        assert ann.consumer.ended is Finish.DRAINED
        ann.consumer._link.close()
        assert bank.depth(0) == 1


def test_a_drain_gives_each_shard_as_soon_as_nothing_of_it_is_left(service: Service) -> None:
    service.gate.closed_for = {0}
    with bank_of(service) as bank:
        ann = bank.peer(THREADS)
        ann.take(0, 1, fence=17)
        bank.publish(0, 0)
        bank.publish(1, 20)
        ann.tick_until(lambda: 0 in service.begun and 20 in service.done)

        ann.consumer.drain(bank.worker.clock() + 600)
        bank.publish(0, 1)
        bank.publish(1, 21)
        ann.tick()
        assert ann.given == [[1]]
        assert ann.left == {1: 1}, "what was done is acknowledged, all else is back"
        assert ann.channels == {0: True}, "never closed before it is acknowledged"
        assert ann.consumer.ended is None
        bob = bank.peer()
        bob.take(1, fence=18)
        bob.tick_until(lambda: 21 in service.done)
        assert 0 not in service.done

        service.gate.open()
        ann.tick_until(lambda: ann.consumer.ended)
        assert ann.consumer.ended is Finish.DRAINED
        assert ann.given == [[1], [0]], "before the process has closed what else it has"
        assert ann.left == {1: 1, 0: 1}
        bob.take(0, fence=19)
        bob.tick_until(lambda: len(service.done) == 4)
        assert service.begun.count(0) == 1
        assert service.begun.index(0) < service.begun.index(1)
        assert {*service.attempts} == {1}


def test_who_drains_takes_nothing_more(service: Service) -> None:
    service.gate.closed_for = {0}
    with bank_of(service) as bank:
        ann = bank.peer(THREADS)
        ann.take(0)
        bank.publish(0, 0)
        ann.tick_until(lambda: service.begun)
        assert not ann.consumer.draining
        ann.consumer.drain(bank.worker.clock() + 600)
        assert ann.consumer.draining

        bank.publish(1, 20)
        ann.take(1)
        assert ann.given == [[1]]
        ann.tick()
        assert (service.begun, bank.depth(1)) == ([0], 1)


@pytest.mark.parametrize("how", ["stop", "deadline"])
def test_what_outlasts_a_drain_is_given_by_the_end_of_the_process(
    service: Service, how: str
) -> None:
    service.gate.closed_for = {0}
    with bank_of(service, claim_ttl=30) as bank:
        clock = bank.worker.clock
        ann = bank.peer(THREADS)
        ann.take(0, 1)
        bank.publish(0, 0)
        ann.tick_until(lambda: service.begun)
        ann.consumer.drain(clock() + 5)
        ann.tick()
        if how == "stop":
            ann.consumer.stop()
        else:
            clock.advance(6)
            ann.tick(2)

        assert ann.consumer.ended is Finish.ABANDONED
        assert ann.given == [[1]]
        ann.consumer.close()
        assert bank.depth(0) == 1
        bank.peers.remove(ann)


# Trust


def test_leases_that_may_have_run_out_end_everything_at_once(service: Service) -> None:
    with bank_of(service, concurrency=1, claim_ttl=60) as bank:
        clock = bank.worker.clock
        ann = held_up(service, bank, 0, 1, trusted=bank.later(5))
        clock.advance(4.9)
        ann.tick()
        assert bank.events(ShardsLapsed) == []

        clock.advance(0.2)
        bank.publish(1, 20)
        ann.tick(1)
        assert bank.events(ShardsLapsed) == [ShardsLapsed((0, 1))]
        assert not any(ann.channels.values()), "whoever waits behind it goes on"
        assert ann.given == [[1]]
        bob = bank.peer()
        bob.take(0, 1, fence=18, trusted=bank.later(5))
        bob.tick()
        assert 20 in service.done
        assert service.begun[0] == 0
        assert 1 not in service.begun, "its predecessor is claimed by one that lives"

        service.gate.open()
        ann.tick_until(lambda: len(ann.given) == 2)
        (outlived,) = bank.events(LeaseOutlived)
        assert (outlived.handler, outlived.shard, outlived.fence) == ("work", 0, 17)
        clock.advance(1)
        bob.tick_until(lambda: {1, 2} <= {*service.done})

        assert sorted(service.begun) == [0, 1, 2, 20]
        assert {*service.attempts} == {1}
        assert bank.events(SuspectFound) == []
        assert len(bank.events(ShardsLapsed)) == 1


@pytest.mark.parametrize("kind", [INLINE, THREADS], ids=["inline", "threads"])
def test_a_process_that_was_paused_begins_nothing_of_what_it_had_claimed(
    service: Service, kind: Any
) -> None:
    """It finds that out in the handler's own thread, before its loop has gone round."""
    with bank_of(service, concurrency=1, claim_ttl=60) as bank:
        clock = bank.worker.clock
        service.does = lambda step, _context: clock.advance(6) if step.number == 0 else None
        ann = bank.peer(kind)
        ann.take(0, trusted=bank.later(5))
        ann.hurry()
        bank.publish(0, 0, 1, 2)
        ann.tick_until_given(0)

        assert service.begun == [0]
        assert len(bank.events(LeaseOutlived)) == 1
        bob = bank.peer()
        bob.take(0)
        bob.tick_until(lambda: len(service.done) == 3)
        assert service.begun == [0, 1, 2]
        assert service.attempts == [1, 1, 1]


def test_trust_that_comes_in_time_changes_nothing(service: Service) -> None:
    with bank_of(service) as bank:
        clock = bank.worker.clock
        ann = bank.peer()
        ann.take(0, trusted=bank.later(5))
        for number in range(10):
            clock.advance(3)
            ann.consumer.trust(bank.later(5))
            bank.publish(0, number)
            ann.tick()

        assert service.begun == [*range(10)]
        assert ann.given == []
        assert bank.events(ShardsLapsed) == []


def test_trust_that_comes_too_late_brings_nothing_back(service: Service) -> None:
    with bank_of(service) as bank:
        clock = bank.worker.clock
        ann = bank.peer()
        ann.take(0, trusted=bank.later(5))
        ann.tick()
        clock.advance(6)
        ann.tick()
        assert ann.given == [[0]]

        ann.consumer.trust(bank.later(5))
        bank.publish(0, 0)
        ann.tick()
        assert service.begun == []
        ann.take(0, fence=18, trusted=bank.later(5))
        ann.tick()
        assert service.fences == [18]


def test_a_taking_that_comes_too_late_is_given_back_at_once(service: Service) -> None:
    with bank_of(service) as bank:
        bank.publish(0, 0)
        ann = bank.peer()
        ann.take(0, trusted=bank.later(-1))

        assert ann.given == [[0]]
        ann.tick()
        assert service.begun == []
        assert ann.channels == {}


def test_what_is_being_given_when_trust_ends_closes_at_once(service: Service) -> None:
    service.gate.closed_for = {0}
    with bank_of(service, claim_ttl=60) as bank:
        clock = bank.worker.clock
        ann = bank.peer(THREADS)
        ann.take(0, trusted=bank.later(5))
        bank.publish(0, 0)
        ann.tick_until(lambda: service.begun)
        ann.consumer.give([0])
        ann.tick()
        assert ann.channels == {0: True}

        clock.advance(6)
        ann.tick(2)
        assert ann.channels == {0: False}
        assert ann.given == []
        service.gate.open()
        ann.tick_until_given(0)
        assert len(bank.events(LeaseOutlived)) == 1


def test_a_process_that_is_not_trusted_does_not_connect(service: Service) -> None:
    with bank_of(service) as bank:
        clock = bank.worker.clock
        ann = bank.peer()
        ann.take(0, trusted=bank.later(5))
        ann.tick()
        clock.advance(6)
        ann.consumer._link_lost(BrokerUnreachable("it was cut"))
        clock.advance(60)
        ann.tick()
        assert not ann.consumer._link.is_up

        ann.consumer.trust(bank.later(5))
        ann.tick()
        assert ann.consumer._link.is_up
        assert ann.channels == {}


# Losing


def test_a_lease_that_is_lost_closes_the_channel_at_once(service: Service) -> None:
    service.gate.closed_for = {0}
    with bank_of(service) as bank:
        ann = bank.peer(THREADS)
        ann.take(0, 1, fence=17)
        bank.publish(0, 0, 1)
        ann.tick_until(lambda: service.begun)

        ann.consumer.lose([0])
        assert ann.channels == {0: False, 1: True}
        ann.consumer.lose([0])  # twice is as once
        ann.tick()
        assert ann.given == []
        service.gate.open()
        ann.tick_until_given(0)
        (outlived,) = bank.events(LeaseOutlived)
        assert (outlived.shard, outlived.fence) == (0, 17)
        assert bank.events(ShardsLapsed) == []

        ann.take(0, fence=30)
        ann.tick_until(lambda: len(service.done) == 2)
        assert service.begun == [0, 1], "what was recorded is a duplicate"
        assert service.fences == [17, 30]


def failing(exhausted: Exhausted) -> Service:
    """Return a service whose step 0 fails at its only attempt until its ``does`` is another."""
    service = Service(retry=RetryPolicy(attempts=1, exhausted=exhausted))

    def fail(step: Step, _context: Context) -> None:
        if step.number == 0:
            raise ValueError("no")

    service.does = fail
    return service


def mend(service: Service) -> None:
    service.does = lambda _step, _context: None


@pytest.mark.parametrize("mended", [False, True])
def test_a_key_is_parked_by_whoever_has_its_shard(*, mended: bool) -> None:
    """The handler fails where the shard was lost meanwhile: another process decides on the key."""
    service = failing("park_key")
    service.gate.closed_for = {0}
    with bank_of(service) as bank:
        ann, bob = bank.peer(THREADS), bank.peer()
        ann.take(0)
        line = bank.publish(0, 0, 1)
        ann.tick_until(lambda: service.begun)
        ann.consumer.lose([0])
        service.gate.open()
        ann.tick_until_given(0)
        assert bank.worker.parked == []
        assert parked_keys(bank.store, "bank") == {}

        if mended:
            mend(service)
        bob.take(0)
        bob.tick()
        assert service.begun == ([0, 0, 1] if mended else [0, 0])
        assert service.attempts[:2] == [1, 1], "what Ann gave back is tried once more, as if never"
        assert [*parked_keys(bank.store, "bank")] == ([] if mended else [line])
        assert len(bank.worker.parked) == (0 if mended else 2)
        assert bank.events(SuspectFound) == []


def test_a_message_is_given_up_by_whoever_has_its_claim() -> None:
    """A dead letter concerns no other message: it needs the claim, and not the shard."""
    service = failing("dead_letter")
    service.gate.closed_for = {0}
    with bank_of(service) as bank:
        ann, bob = bank.peer(THREADS), bank.peer()
        ann.take(0)
        bank.publish(0, 0, 1)
        ann.tick_until(lambda: service.begun)
        ann.consumer.lose([0])
        service.gate.open()
        ann.tick_until_given(0)
        bob.take(0)
        bob.tick()

        assert service.begun == [0, 1]
        assert len(bank.worker.dead_letters) == 1


def test_a_key_that_is_parked_behind_the_back_of_its_owner_can_be_set_free_there() -> None:
    service = failing("park_key")
    with bank_of(service) as bank:
        ann, bob = bank.peer(), bank.peer()
        ann.take(0)
        bank.store.forgetful = True
        line = bank.publish(0, 0)
        ann.tick()
        assert len(bank.worker.parked) == 1
        ann.consumer.lose([0])

        mend(service)
        bob.take(0)
        bob.tick()
        bank.store.forgetful = False
        bank.worker.clock.advance(1.5)
        ann.tick_until_given(0)
        bank.publish(0, 1)
        bob.tick()
        assert service.done == [0, 1], "Bob does not know that the key is parked"

        upto = bank.store.parked("bank")[line]
        with Replay("bank", bank.worker.settings, bank.store) as replay:
            letters = replay._move(line, ["replay"], Unparked())  # one round of key()
            replay._mark(line, letters, upto)
        bob.tick()
        bank.worker.clock.advance(0.1)  # the marker looks again
        bob.tick()
        assert parked_keys(bank.store, "bank") == {}
        bank.publish(0, 2)
        bob.tick()
        assert service.done == [0, 1, 2]
        assert bank.worker.parked == []


def test_a_handler_that_never_began_outlives_nothing(service: Service) -> None:
    with bank_of(service, concurrency=1) as bank:
        ann = held_up(service, bank, 0)
        ann.consumer.lose([0])
        service.gate.open()
        ann.tick_until_given(0)

        assert len(bank.events(LeaseOutlived)) == 1


# Everything at once


_HAPPENINGS = ["send", "send", "send", "give", "lose", "lapse", "drain", "tick", "cut", "time"]


class World:
    """Two processes that take what the other gave, and a list of what happened to each key."""

    def __init__(self, bank: Bank, random: Random) -> None:
        self.bank = bank
        self.random = random
        self.peers = [bank.peer(), bank.peer()]
        #: Who has each shard; None: nobody.
        self.holders: list[Peer | None] = [None, None]
        self.sent: dict[str, int] = defaultdict(int)
        self.fence = 0

    def happen(self) -> None:
        """Let something happen to one shard."""
        shard = self.random.randrange(2)
        peer = self.holders[shard]
        match self.random.choice(_HAPPENINGS):
            case "send":
                key = self.random.randrange(3)
                line = self.bank.keys[shard][key]
                self.bank.publish(shard, self.sent[line], key=key)
                self.sent[line] += 1
            case "give" if peer is not None:
                peer.consumer.give([shard])
            case "lose" if peer is not None:
                peer.consumer.lose([shard])
            case "lapse" if peer is not None:
                peer.consumer.trust(self.bank.later(-1))
            case "drain":
                self.random.choice(self.peers).consumer.drain(FOREVER)
            case "cut":
                cut = BrokerUnreachable("it was cut")
                self.random.choice(self.peers).consumer._link_lost(cut)
            case "time":
                self.bank.worker.clock.advance(self.random.choice([0.1, 1.0, 5.0]))

    def go_on(self, ticks: int) -> None:
        """Let both work, and take what is nobody's. Who has drained is replaced."""
        for number, peer in enumerate(self.peers):
            for _ in range(ticks):
                if not peer.consumer.ended:
                    peer.tick(1)
            if peer.consumer.ended:
                assert peer.consumer.ended is Finish.DRAINED
                peer.consumer.close()
                self.bank.peers.remove(peer)
                self.peers[number] = self.bank.peer()
            for shard in [shard for some in peer.given for shard in some]:
                assert self.holders[shard] is peer
                self.holders[shard] = None
            peer.given = []
        for shard in [shard for shard, holder in enumerate(self.holders) if holder is None]:
            taker = self.random.choice(self.peers)
            self.fence += 1
            self.holders[shard] = taker
            taker.take(shard, fence=self.fence)


@pytest.mark.parametrize("seed", range(25))
def test_whoever_has_a_shard_when_every_message_runs_once_and_in_order(seed: int) -> None:
    """Shards are given, lost and lapse, processes drain, connections break, and attempts fail."""
    random = Random(seed)
    service = Service()
    done: dict[str, list[int]] = defaultdict(list)
    fences: dict[str, list[int]] = defaultdict(list)

    def work(step: Step, context: Context) -> None:
        if context.attempt == 1 and random.random() < 0.1:
            raise Retry(delay=random.choice([0.0, 0.5, 3.0]))
        done[step.line].append(step.number)
        fences[step.line].append(context.fence)

    service.does = work
    with bank_of(service, prefetch=20) as bank:
        world = World(bank, random)
        for _ in range(300):
            world.happen()
            world.go_on(random.randrange(3))
        for _ in range(100):
            bank.worker.clock.advance(1.0)
            for peer in world.peers:
                peer.consumer.trust(FOREVER)
            world.go_on(3)

        assert done == {line: [*range(number)] for line, number in world.sent.items()}
        assert all(seen == sorted(seen) for seen in fences.values()), "a fence fell"
        assert (bank.depth(0), bank.depth(1)) == (0, 0)
        assert bank.worker.dead_letters == []
        assert all(peer.consumer.is_idle() for peer in world.peers)
