"""The relay beside messages that keep others from being confirmed, and a broker that hangs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from worker.contrib.outbox import EVERYTHING, Bounds, Entry, Relay

from worker import ConfirmTimeout, Outgoing, PublishRefused


class Clock:
    """Turned by what takes time."""

    now = 0.0


class Rows:
    """Rows in memory: their lanes, by their numbers."""

    def __init__(self, *lanes: str) -> None:
        self.lanes = dict(enumerate(lanes, 1))

    def check(self) -> None: ...

    def horizon(self) -> None:
        return None

    def newest(self) -> int:
        return max(self.lanes, default=0)

    def read(self, limit: int, within: Bounds = EVERYTHING) -> list[Entry]:
        last = self.newest() if within.until is None else within.until
        return [
            entry(number, lane)
            for number, lane in self.lanes.items()
            if within.after < number <= last
            and lane not in within.without
            and (within.lanes is None or lane in within.lanes)
        ][:limit]

    def remove(self, sequences: Sequence[int]) -> None:
        for number in sequences:
            del self.lanes[number]


def entry(number: int, lane: str) -> Entry:
    outgoing = Outgoing("x", "said", b"{}", f"m{number}", {"type": "said"}, {})
    return Entry(number, None, lane, f"m{number}", outgoing)


class Broker:
    """An app whose broker confirms what is in front of a bad message, and nothing behind it."""

    def __init__(self, clock: Clock, *bad: str) -> None:
        self._clock = clock
        self.bad = {*bad}
        self.is_hung = False
        self.refused: set[str] = set()
        #: Each burst that was sent.
        self.bursts: list[list[str]] = []

    @contextmanager
    def publisher(self) -> Iterator[Any]:
        sent: list[str] = []

        class Out:
            def send(self, outgoing: Outgoing, *, kept_by_sender: bool) -> None:
                assert kept_by_sender
                sent.append(outgoing.message_id)

        yield Out()
        self.bursts.append(sent)
        first = next((n for n, name in enumerate(sent) if name in self.bad or self.is_hung), None)
        if first is not None:
            self._clock.now += 30
            late = sent[first:]
            raise ConfirmTimeout(f"{len(late)} messages were not confirmed", *late)
        for name in self.refused.intersection(sent):
            raise PublishRefused("no", name)


def relay_of(broker: Any, rows: Rows, clock: Clock) -> Relay:
    return Relay(broker, rows, grace=0.0, clock=lambda: clock.now)


def turn(relay: Relay, clock: Clock, seconds: float) -> None:
    end = clock.now + seconds
    while clock.now < end:
        relay.turn()
        clock.now += 0.5


def test_one_that_is_never_confirmed_is_found_and_the_others_go_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock, rows = Clock(), Rows("front", "bad", "one", "two", "one")
    relay = relay_of(Broker(clock, "m2"), rows, clock)
    turn(relay, clock, 200)
    assert rows.lanes == {2: "bad"}
    together, alone = caplog.messages
    assert together.startswith("3 rows of the outbox were not confirmed together: ")
    assert alone.startswith("row 2 of the outbox, a said, is refused, ")


def test_what_comes_later_is_not_sent_with_it(caplog: pytest.LogCaptureFixture) -> None:
    clock, rows = Clock(), Rows("front", "bad", "one")
    broker = Broker(clock, "m2")
    relay = relay_of(broker, rows, clock)
    turn(relay, clock, 200)
    caplog.clear()
    rows.lanes |= {4: "new", 5: "bad"}
    broker.bursts.clear()
    turn(relay, clock, 200)
    assert rows.lanes == {2: "bad", 5: "bad"}
    assert broker.bursts.count(["m4"]) == 1
    assert {*map(tuple, broker.bursts)} == {("m4",), ("m2",)}
    assert caplog.messages == []
    broker.bad.clear()
    turn(relay, clock, 100)
    assert rows.lanes == {}


def test_several_bad_ones_keep_nobody_waiting_for_ever() -> None:
    """All of them together take longer than any of them rests."""
    lanes = [f"bad{number}" for number in range(6)]
    clock, rows = Clock(), Rows(*lanes, "good")
    relay = relay_of(Broker(clock, *(f"m{number}" for number in range(1, 7))), rows, clock)
    turn(relay, clock, 60 * 30)
    assert [*rows.lanes.values()] == lanes


def test_a_broker_that_confirms_nothing_for_a_while_is_no_fault_of_theirs() -> None:
    clock, rows = Clock(), Rows(*(f"key{number % 20}" for number in range(100)))
    broker = Broker(clock)
    broker.is_hung = True
    relay = relay_of(broker, rows, clock)
    turn(relay, clock, 300)
    assert len(rows.lanes) == 100
    broker.is_hung = False
    turn(relay, clock, 100)
    assert rows.lanes == {}


def test_after_a_broker_that_confirmed_nothing_few_are_sent_one_at_a_time() -> None:
    clock, rows = Clock(), Rows(*(f"key{number}" for number in range(100)))
    broker = Broker(clock)
    broker.is_hung = True
    relay = relay_of(broker, rows, clock)
    turn(relay, clock, 600)
    assert len(rows.lanes) == 100
    broker.is_hung = False
    broker.bursts.clear()
    turn(relay, clock, 100)
    assert rows.lanes == {}
    assert max(map(len, broker.bursts)) > 50
    assert [len(burst) for burst in broker.bursts].count(1) < 20


def test_a_burst_waits_until_those_that_are_not_to_blame_are_sent() -> None:
    clock, rows = Clock(), Rows("bad", "one", "two")
    relay = relay_of(Broker(clock, "m1"), rows, clock)
    while not (passed := relay.turn()).is_last:
        clock.now += 0.5
    assert rows.lanes == {1: "bad"}
    assert passed.refused == 1


def test_a_burst_does_not_wait_for_a_broker_that_confirms_nothing() -> None:
    clock, rows = Clock(), Rows(*(f"key{number}" for number in range(100)))
    broker = Broker(clock)
    broker.is_hung = True
    relay = relay_of(broker, rows, clock)
    while not (passed := relay.turn()).is_last:
        clock.now += 0.5
    assert clock.now < 200
    assert passed.refused == 100


def test_what_is_refused_for_good_is_refused_also_where_it_is_sent_apart(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock, rows = Clock(), Rows("bad", "no", "one")
    broker = Broker(clock, "m1")
    broker.refused = {"m2"}
    relay = relay_of(broker, rows, clock)
    turn(relay, clock, 300)
    assert rows.lanes == {1: "bad", 2: "no"}
    assert [text for text in caplog.messages if text.startswith("row 2 ")] != []


def test_a_row_that_somebody_removes_is_forgotten() -> None:
    clock, rows = Clock(), Rows("bad", "one")
    relay = relay_of(Broker(clock, "m1"), rows, clock)
    turn(relay, clock, 100)
    rows.remove([1])
    clock.now += 100
    assert relay.turn().refused == 0
