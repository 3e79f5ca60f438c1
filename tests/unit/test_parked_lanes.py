"""The lane of a parked key waits for nothing that is not of its own, and what left it is gone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
import pytest

from worker import App, Context, Event, RetryPolicy
from worker.codec import Codec
from worker.deadletters import Box, Letter
from worker.dedup.base import DedupStore, StoreOptions
from worker.dedup.memory import MemoryStore
from worker.errors import UsageError
from worker.message import UNPARK_HEADER, Message
from worker.parking import ALL_KNOWN, MARKER, Parking
from worker.replay import Replay, Unparked
from worker.testing import TestWorker

LATER: dict[str, Any] = {
    "attempts": 4,
    "wait": "fixed",
    "first_wait": 600,
    "max_wait": 600,
    "jitter": 0,
}


class Step(Event, name="step", key="line"):
    """One of a sequence."""

    line: str
    number: int = 0


class Child(Event, name="child"):
    """What a handler publishes."""


class Pair:
    """Until it is mended ``slow`` fails at number 0, say, and ``quick`` parks the key at number 3.

    Number 0 of a line "parent" has a child instead.
    """

    def __init__(self) -> None:
        self.app = App("bank")
        self.mended = False
        self.failing = {0}
        self.meanwhile: Callable[[], None] = lambda: None
        self.done: dict[str, list[int]] = {"slow": [], "quick": []}
        self.app.on(Step, name="slow", retry=RetryPolicy(**LATER))(self.slow)
        parks = RetryPolicy(attempts=1, exhausted="park_key")
        self.app.on(Step, name="quick", retry=parks)(self.quick)

    def slow(self, event: Step, context: Context) -> None:
        if event.number in self.failing and not self.mended:
            if event.line != "parent":
                raise ValueError("later")
            context.publish(Child())
        self.done["slow"].append(event.number)

    def quick(self, event: Step) -> None:
        if event.number == 3 and not self.mended:
            self.meanwhile()
            raise ValueError("no")
        self.done["quick"].append(event.number)


def publish(worker: TestWorker, line: str, *numbers: int) -> None:
    for number in numbers:
        worker.publish(Step(line=line, number=number))


def parked(worker: TestWorker) -> list[int]:
    return [orjson.loads(letter.body)["number"] for letter in worker.parked]


class Kept:
    """Keeps children back until they are let go."""

    def __init__(self, worker: TestWorker) -> None:
        consumer: Any = worker._consumer
        self._detour = consumer._detour
        self._send = self._detour._send_child
        self._children: list[Any] = []
        self._detour._send_child = lambda *args: self._children.append(args)

    def let_go(self) -> None:
        self._detour._send_child = self._send
        for each in self._children:
            self._send(*each)


def tick(worker: TestWorker) -> None:
    """Let the service do all that it can do now."""
    consumer: Any = worker._consumer
    while consumer.tick(0):
        pass


def test_a_lane_goes_on_whose_key_another_shard_has_set_free() -> None:
    pair = Pair()
    with TestWorker(pair.app, settings={"concurrency": 2}) as worker:
        children = Kept(worker)
        publish(worker, "parent", *range(6))
        tick(worker)
        assert pair.done == {"slow": [0], "quick": [0, 1, 2]}

        pair.mended = True
        consumer: Any = worker._consumer
        parking = consumer._dispatcher._parking
        assert parking.free("parent", 2**52), "as the marker in another shard does"
        children.let_go()
        worker.run()
    assert pair.done == {"slow": [*range(6)], "quick": [*range(6)]}


def test_what_is_parked_waits_for_no_retry_any_more() -> None:
    pair = Pair()
    with TestWorker(pair.app, settings={"prefetch": 8, "outage_after": 100}) as worker:
        for line in ("a", "b", "c", "d"):
            publish(worker, line, 0, 3)
            worker.run(advance=False)
        consumer: Any = worker._consumer
        assert [channel.held for channel in consumer._link.channels if not channel.relays] == [0]

        publish(worker, "e", 0)
        worker.run(advance=False)
        assert worker.dead_letters == [], "it is not crowded"
        worker.clock.advance(600)
        worker.run(advance=False)
        assert [channel.held for channel in consumer._link.channels if not channel.relays] == [1]


def test_a_store_that_forgot_the_keys_makes_nobody_else_forget_them() -> None:
    store = MemoryStore(StoreOptions(claim_ttl=10, retention=60))
    parking = Parking(store, "bank")
    assert parking.load() is False
    parking.restore({})
    message = Message("id", "step", "K", b"", {}, {}, redelivered=False, shard=0)
    parking.park(message)
    parking.facts(message)
    parking.parked(message)
    assert parking.save()

    parking._store = MemoryStore(StoreOptions(claim_ttl=10, retention=60))
    assert parking.load() is False
    assert parking.holds(message), "what runs meanwhile does not overtake"


def test_a_key_that_a_replay_sends_back_stays_parked_though_nothing_of_it_lies_in_the_queue() -> (
    None
):
    store = MemoryStore(StoreOptions(claim_ttl=10, retention=60))
    parking = Parking(store, "bank")
    parking.restore({"K": 5})
    headers = {"qw-unparked": "replay", "qw-unparked-first": store.parked("bank")["K"]}
    back = Message("m3", "step", "K", b"", headers, {}, redelivered=False, shard=0)
    new = Message("m4", "step", "K", b"", {}, {}, redelivered=False, shard=0)
    parking.admit(back)
    forget(store, "K")

    assert parking.load() is False
    parking.restore({})
    assert "K" in store.parked("bank")
    assert parking.holds(new)
    assert not parking.holds(back)

    forget(store, "K")
    store.mark_parked("bank", ALL_KNOWN, 1)  # by somebody who saw nothing of it
    assert parking.load() is True
    assert parking.holds(new)

    forget(store)
    parking.leave([0])  # another process goes on with it
    parking.load()
    parking.restore({})
    assert "K" not in store.parked("bank")


def test_a_key_stays_parked_while_its_only_message_is_on_its_way_to_the_parked_queue() -> None:
    store = MemoryStore(StoreOptions(claim_ttl=10, retention=60))
    parking = Parking(store, "bank")
    parking.restore({})
    first = Message("m3", "step", "K", b"", {}, {}, redelivered=False, shard=0)
    parking.park(first)
    parking.facts(first)
    parking.save()

    forget(store)
    parking.load()
    parking.restore({})
    assert parking.is_parked("K")
    assert "K" in store.parked("bank")


def fresh(key: str) -> Message:
    """Return a message of a key that never was in the parked queue."""
    return Message(f"of {key}", "step", key, b"", {}, {}, redelivered=False, shard=0)


def test_the_store_is_told_of_no_key_before_what_failed_is_in_the_queue() -> None:
    """Else who goes on after a crash parks it as what is behind it, without its reason."""
    store = MemoryStore(StoreOptions(claim_ttl=10, retention=60))
    parking = Parking(store, "bank")
    parking.restore({})
    failed, other = fresh("K"), fresh("J")
    for message in (failed, other):
        parking.park(message)
        parking.facts(message)
    parking.parked(other)
    assert parking.save()
    assert {*store.parked("bank")} == {"J", ALL_KNOWN}
    parking.load()
    assert parking.is_parked("K"), "here it is"

    parking.parked(failed)
    assert parking.save()
    assert {*store.parked("bank")} == {"J", "K", ALL_KNOWN}


@pytest.mark.parametrize("shards", [None, [0], [1]])
def test_a_key_is_parked_no_more_where_what_failed_is_in_no_lane_any_more(
    shards: list[int] | None,
) -> None:
    """Its connection is lost, or its shard given away, before it was sent to the queue."""
    store = MemoryStore(StoreOptions(claim_ttl=10, retention=60))
    parking = Parking(store, "bank")
    parking.restore({})
    failed, sent = fresh("K"), fresh("J")
    for message in (failed, sent):
        parking.park(message)
    parking.facts(sent)

    parking.forget(shards)
    parking.load()
    assert parking.is_parked("K") == (shards == [1])
    assert parking.is_parked("J")


def test_a_marker_waits_for_what_has_failed_again_and_is_not_sent_yet() -> None:
    store = MemoryStore(StoreOptions(claim_ttl=10, retention=60))
    parking = Parking(store, "bank")
    parking.restore({"K": 5})
    looked = store.parked("bank")["K"]
    failed = Message("m", "step", "K", b"", {"qw-unparked": "r"}, {}, redelivered=False, shard=0)
    assert not parking.is_under_way("K")
    parking.park(failed)
    assert parking.is_under_way("K"), "and a marker waits for that"
    parking.facts(failed)
    parking.parked(failed)
    assert not parking.is_under_way("K")
    assert not parking.free("K", looked)


def test_what_a_replay_sends_comes_again_and_passes_where_it_failed_and_was_not_sent() -> None:
    """Its connection was lost before."""
    store = MemoryStore(StoreOptions(claim_ttl=10, retention=60))
    parking = Parking(store, "bank")
    parking.restore({"K": 5})
    headers = {"qw-unparked": "replay", "qw-unparked-first": store.parked("bank")["K"]}
    first = Message("m", "step", "K", b"", headers, {}, redelivered=False, shard=0)
    parking.admit(first)
    parking.park(first)
    assert parking.holds(first)
    parking.admit(first)
    assert parking.holds(first), "it is to be parked"

    parking.forget()
    parking.load()
    parking.admit(first)
    assert not parking.holds(first)


def test_a_key_is_not_parked_because_its_dead_letters_return() -> None:
    store = MemoryStore(StoreOptions(claim_ttl=10, retention=60))
    parking = Parking(store, "bank")
    parking.restore({"other": 5})
    headers = {"qw-unparked": "replay", "qw-unparked-first": 0}
    parking.admit(Message("m3", "step", "K", b"", headers, {}, redelivered=False, shard=0))

    parking.load()
    assert not parking.is_parked("K")
    parking.restore({"other": 5})
    assert "K" not in store.parked("bank")


def test_no_replay_passes_while_the_parked_queue_refuses_something_of_the_key() -> None:
    store = MemoryStore(StoreOptions(claim_ttl=10, retention=60))
    parking = Parking(store, "bank")
    parking.restore({"K": 5})
    refused = Message("m3", "step", "K", b"", {}, {}, redelivered=False, shard=0)
    parking.facts(refused)
    parking.refused(refused)

    def passes(replay: str) -> bool:
        headers = {"qw-unparked": replay, "qw-unparked-first": 2**52}
        successor = Message("m4", "step", "K", b"", headers, {}, redelivered=False, shard=0)
        parking.admit(successor)
        return not parking.holds(successor)

    assert not passes("early")
    parking.parked(refused)
    assert passes("late")
    parking.facts(refused)
    assert passes("late")
    parking.refused(refused)
    assert not passes("late"), "what passed before does so no more"


def returning(worker: TestWorker, monkeypatch: pytest.MonkeyPatch) -> Replay:
    """Return a replay; while it waits the service works."""

    def work(seconds: float) -> None:
        worker.run(advance=False)
        worker.clock.advance(seconds)

    monkeypatch.setattr("worker.replay.sleep", work)
    return Replay("bank", worker.settings, worker.store)


def test_a_replay_names_the_message_that_failed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair()
    with TestWorker(pair.app) as worker:
        publish(worker, "K", *range(6))
        worker.run(advance=False)
        assert parked(worker) == [*range(6)]
        with returning(worker, monkeypatch) as replay:
            done = replay.key("K", "replay", 5)
        assert done.failed is not None
        assert orjson.loads(done.failed.body)["number"] == 3
        assert done.failed.reason.startswith("failed at attempt 1")


def test_a_replay_does_not_overtake_what_another_one_sent_in_vain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A command that waited too long is given again while what it sent is on its way."""
    pair = Pair()
    with (
        TestWorker(pair.app) as worker,
        Replay("bank", worker.settings, worker.store) as first,
        Replay("bank", worker.settings, worker.store) as second,
    ):
        publish(worker, "K", 3, 4)
        worker.run()
        assert len(first._move("K", ["first"], Unparked())) == 2
        publish(worker, "K", 5)
        sent: list[Letter] = []
        pair.meanwhile = lambda: sent.extend(second._move("K", ["second"], Unparked()))
        worker.run()  # number 3 fails again, and the second one sends number 5 meanwhile
        assert [orjson.loads(letter.body)["number"] for letter in sent] == [5]
        assert pair.done["quick"] == []

        pair.mended, pair.meanwhile = True, lambda: None
        with returning(worker, monkeypatch) as replay:
            assert replay.key("K", "third", 5).freed
    assert pair.done["quick"] == [3, 4, 5]


def test_a_key_stays_parked_whatever_the_clock_of_a_replay_shows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pair = Pair()
    with TestWorker(pair.app) as worker:
        publish(worker, "K", 3, 4)
        worker.run()
        worker.store.unpark("bank", "K", 2**52)  # the store has forgotten it
        monkeypatch.setattr("worker.replay.time_ns", lambda: 2**52 * 1000)
        with returning(worker, monkeypatch) as replay:
            done = replay.key("K", "replay", 5)
        assert not done.freed
        assert done.failed is not None
        assert "K" in worker.store.parked("bank")


def test_a_replay_frees_nothing_while_somebody_else_reads_what_is_parked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pair = Pair()
    with TestWorker(pair.app) as worker:
        publish(worker, "K", 3, 4)
        worker.run()
        pair.mended = True
        codec = Codec.of("bank", worker.settings)
        with (
            Box("bank.parked", codec, worker.settings) as box,
            returning(worker, monkeypatch) as replay,
        ):
            assert len([*box.read()]) == 2
            done = replay.key("K", "replay", 0.2)
            assert not done.freed
            assert done.is_read
        with returning(worker, monkeypatch) as replay:
            assert replay.key("K", "replay", 5) == Unparked(returned=2, freed=True)
        assert pair.done["quick"] == [3, 4]


def test_a_replay_frees_nothing_of_which_it_cannot_see_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pair = Pair()
    with TestWorker(pair.app) as worker:
        publish(worker, "K", 3, 4, 5)
        worker.run()
        pair.mended = True
        monkeypatch.setattr("worker.deadletters.MOST_HELD", 2)
        monkeypatch.setattr("worker.deadletters._SILENCE", 0.1)
        with returning(worker, monkeypatch) as replay:
            with pytest.raises(UsageError, match="of the last 1 of them nothing is known"):
                replay.key("K", "replay", 5)
            assert "K" in worker.store.parked("bank")
            assert replay.key("K", "replay", 5) == Unparked(returned=1, freed=True)
        assert pair.done["quick"] == [3, 4, 5]


def test_somebody_s_event_that_looks_like_a_marker_is_an_event_and_frees_nothing() -> None:
    pair = Pair()
    seen: list[str] = []

    @pair.app.on(MARKER)
    def observe(event: dict[str, str], context: Context) -> None:
        seen.append(context.message_id)

    with TestWorker(pair.app) as worker:
        publish(worker, "a", 3)
        worker.run()
        assert parked(worker) == [3]
        for number, key in enumerate(["a", "b"]):
            headers = {UNPARK_HEADER: 2**52}
            worker.publish_raw("{}", name=MARKER, id=f"m{number}", key=key, headers=headers)
        worker.run()
        assert seen == ["m1"], "that of the parked key waits behind it"
        assert "a" in worker.store.parked("bank")


def test_a_marker_waits_for_nothing_that_came_behind_it() -> None:
    """A key that is free (two replays at once sent two markers) may be busy for ever."""
    pair = Pair()
    with TestWorker(pair.app) as worker:
        consumer: Any = worker._consumer
        publish(worker, "K", 0)
        worker.run(advance=False)  # it waits ten minutes for its retry
        with Replay("bank", worker.settings, worker.store) as replay:
            replay._mark("K", [], 2**52)
        worker.run(advance=False)
        (channel,) = (each for each in consumer._link.channels if not each.relays)
        publish(worker, "K", 7)
        worker.run(advance=False)
        assert channel.settlement.upto == 0

        pair.failing = {7}
        worker.clock.advance(600)
        worker.run(advance=False)
        worker.clock.advance(0.1)
        worker.run(advance=False)
        assert pair.done["slow"] == [0]
        assert channel.settlement.upto == 2, "the marker is done with"


def test_a_key_that_another_marker_set_free_is_free_everywhere() -> None:
    """Groups of handlers, and shards, have markers of their own."""
    store = MemoryStore(StoreOptions(claim_ttl=10, retention=60))
    ann, bob = Parking(store, "bank"), Parking(store, "bank")
    store.mark_parked("bank", "K", 5)
    ann.load()
    bob.load()

    assert ann.free("K", 5)
    assert bob.free("K", 5)


def test_a_store_that_forgot_a_key_is_told_again_what_was_parked_since() -> None:
    store = MemoryStore(StoreOptions(claim_ttl=10, retention=60))
    parking = Parking(store, "bank")
    store.mark_parked("bank", "K", 5)
    parking.load()
    message = Message("id", "step", "K", b"", {}, {}, redelivered=False, shard=0)
    parking.facts(message)
    parking.parked(message)
    parking.save()
    store.unpark("bank", "K", 2**52)  # it forgets

    assert not parking.free("K", 5)
    number = store.parked("bank")["K"]
    assert parking.free("K", number)


def forget(store: DedupStore, *keys: str) -> None:
    for key in (ALL_KNOWN, *keys):
        store.unpark("bank", key, 2**52)


@pytest.mark.parametrize("before", [False, True], ids=["in time", "before"])
@pytest.mark.parametrize("times", [1, 3])
def test_a_key_that_the_store_forgets_during_its_replay_is_not_free_by_that(
    monkeypatch: pytest.MonkeyPatch, times: int, *, before: bool
) -> None:
    pair = Pair()
    with TestWorker(pair.app) as worker:
        publish(worker, "K", 3, 4, 5)
        worker.run()
        assert len(worker.parked) == 3
        pair.mended = True
        looks = 0

        def forget_or_work(_seconds: float) -> None:
            nonlocal looks
            looks += 1
            if looks <= times:
                forget(worker.store, "K")
            else:
                worker.run()

        if before:
            forget(worker.store, "K")
        monkeypatch.setattr("worker.replay.sleep", forget_or_work)
        with Replay("bank", worker.settings, worker.store) as replay:
            assert replay.key("K", "replay", 5).freed
        assert looks > times
        publish(worker, "K", 6)
        worker.run()
        assert worker.parked == []
    assert pair.done["quick"] == [3, 4, 5, 6]


def test_a_marker_frees_nothing_that_a_predecessor_parked_behind_it_in_a_store_that_forgets() -> (
    None
):
    store = MemoryStore(StoreOptions(claim_ttl=10, retention=60))
    store.mark_parked("bank", "K", 9)  # by a process that died, after the replay had looked at 5
    parking = Parking(store, "bank")
    parking.load()
    store.unpark("bank", "K", 2**52)  # it forgets

    assert not parking.free("K", 5)
    assert store.parked("bank")["K"] == 9, "it is told again"
    assert parking.free("K", 9)


def test_what_was_the_first_of_an_earlier_replay_lets_nothing_of_a_later_one_pass() -> None:
    """Its headers are those of both where it is not the first any more."""
    store = MemoryStore(StoreOptions(claim_ttl=10, retention=60))
    parking = Parking(store, "bank")

    def arrive(number: int, **headers: object) -> Message:
        found = {name.replace("_", "-"): value for name, value in headers.items()}
        message = Message(f"m{number}", "step", "K", b"", found, {}, redelivered=False, shard=0)
        parking.admit(message)
        return message

    first = arrive(2)
    parking.park(first)
    parking.facts(first)
    parking.parked(first)
    parking.save()
    looked = store.parked("bank")["K"]
    head = arrive(2, qw_unparked="later", qw_unparked_first=looked)
    assert not parking.holds(head)
    parking.park(head)  # it fails again

    parking.admit(arrive(1, qw_unparked="later", qw_unparked_first=looked - 1))
    assert parking.holds(arrive(3, qw_unparked="later"))
