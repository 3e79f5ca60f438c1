"""A suspect runs alone, and nothing waits long for that; who kills its process is found."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from worker import App, Event, Reject
from worker.consumer import Consumer
from worker.dedup.base import Batch, Claim, fingerprint, record_ids
from worker.payload import to_json
from worker.telemetry import SuspectFound
from worker.testing import TestWorker

PATIENCE = 10.0
DEAD = b"deadlife"
#: Seconds within which everything goes on.
SOON = 3.0


class Step(Event, name="step", key="line"):
    """One of a line; each line does what it is called."""

    line: str


class Bank:
    """An app, and its consumers: one after the other, each in a process of its own."""

    def __init__(self, worker: TestWorker, app: App) -> None:
        self.worker = worker
        self.begun: list[str] = []
        self.done: list[str] = []
        self.gates: dict[str, threading.Event] = {}
        self.consumer: Any = None
        self._closed = False

        @app.on(Step, name="work")
        def work(event: Step) -> None:
            life = self.consumer
            self.begun.append(event.line)
            if event.line.startswith("rejected"):
                raise Reject("no")
            if event.line.startswith(("long", "poison")):
                self.gates.setdefault(event.line, threading.Event()).wait()
            if life is self.consumer:  # what outlives its process is none
                self.done.append(event.line)

    def open(self) -> None:
        old, self.consumer = self.consumer, None
        consumer = Consumer(
            self.worker.app,
            self.worker.settings,
            shards=range(self.worker.settings.shards),
            store=self.worker.store,
            clock=self.worker.clock,
        )
        consumer.open()
        self.consumer = consumer
        if old is not None:
            consumer.bury([old.owner])

    def kill(self) -> None:
        """End the process as kill -9 does: nothing is given back."""
        old = self.consumer
        old.close()
        self.gates = {}
        self.open()

    def publish(self, *lines: str) -> None:
        for line in lines:
            self.worker.publish(Step(line=line))

    def publish_suspects(self, *lines: str) -> None:
        """Publish what a process had begun with that is dead."""
        record = record_ids("bank.work")
        for number, line in enumerate(lines):
            event = Step(line=line)
            self.worker.publish(event)
            token = DEAD + number.to_bytes(4, "big")
            claim = Claim(record(event.event_id), token, fingerprint(to_json({"line": line})))
            self.worker.store.apply(Batch(claims=[claim]))
        self.consumer.bury([DEAD])

    def tick(self) -> None:
        for _ in range(20):
            self.consumer.tick(0)

    def tick_until(self, condition: Callable[[], object], within: float = 0.0) -> None:
        """Tick until then, or fail; at most so many seconds of the clock go by."""
        deadline = time.monotonic() + PATIENCE
        clock = self.worker.clock
        end = clock() + within
        while not condition():
            assert time.monotonic() < deadline, (self.begun, self.consumer.statistics())
            busy = self.consumer.tick(0.005)
            if not busy and clock() < end and time.monotonic() > deadline - PATIENCE + 0.1:
                clock.advance(min(0.1, end - clock()))

    def has_more_than(self, hung: int) -> bool:
        """Tell whether more handlers hang than that, or something was given up."""
        return len(self.gates) > hung or bool(self.worker.dead_letters)

    def hold_back_letters(self) -> list[Callable[[Any], None]]:
        """Let the broker confirm nothing; return what it would be confirmed by."""
        waiting: list[Callable[[Any], None]] = []
        self.consumer._link.send = lambda _message, then: waiting.append(then)
        return waiting


@pytest.fixture
def bank() -> Iterator[Bank]:
    app = App("bank")
    with TestWorker(app, settings={"shards": 2, "concurrency": 4, "claim_ttl": 60.0}) as worker:
        made = Bank(worker, app)
        worker.drain()
        made.open()
        try:
            yield made
        finally:
            for gate in made.gates.values():
                gate.set()
            made.consumer.close()


def test_a_long_handler_keeps_neither_a_suspect_nor_the_others_waiting(bank: Bank) -> None:
    bank.publish("long")
    bank.tick_until(lambda: bank.begun == ["long"])
    bank.publish_suspects("suspect")
    bank.tick_until(lambda: bank.worker.runtime_events)
    bank.publish(*(f"other-{number}" for number in range(8)))
    bank.tick()
    assert bank.begun == ["long"], "it waits for quiet first"

    bank.tick_until(lambda: len(bank.done) == 9, within=SOON)
    assert bank.done[0] == "suspect"
    assert [type(event) for event in bank.worker.runtime_events] == [SuspectFound]


def test_a_suspect_begins_as_soon_as_all_is_quiet(bank: Bank) -> None:
    bank.publish("long")
    bank.tick_until(lambda: bank.begun == ["long"])
    bank.publish_suspects("suspect")
    bank.tick_until(lambda: bank.worker.runtime_events)
    bank.gates["long"].set()
    bank.tick_until(lambda: bank.done == ["long", "suspect"])


def test_a_suspect_that_takes_long_keeps_the_other_suspects_waiting_and_nothing_else(
    bank: Bank,
) -> None:
    bank.publish_suspects("long", "suspect")
    bank.tick_until(lambda: len(bank.worker.runtime_events) == 2)
    bank.publish(*(f"other-{number}" for number in range(8)))
    bank.tick_until(lambda: bank.begun)
    bank.tick()
    assert bank.begun == ["long"], "it runs alone for a while"

    bank.tick_until(lambda: len(bank.done) == 8, within=SOON)
    bank.worker.clock.advance(30)
    bank.tick()
    assert "suspect" not in bank.begun
    bank.gates["long"].set()
    bank.tick_until(lambda: bank.done[-2:] == ["long", "suspect"], within=SOON)


def test_a_letter_that_the_broker_refuses_for_ever_keeps_no_suspect_waiting(bank: Bank) -> None:
    bank.hold_back_letters()
    bank.publish("rejected")
    bank.tick_until(lambda: bank.begun == ["rejected"])
    bank.publish_suspects("suspect")
    bank.publish("other")
    bank.tick_until(lambda: {"suspect", "other"} <= {*bank.done})


@pytest.mark.parametrize("confirmed", [True, False])
def test_what_a_suspect_left_is_safe_before_the_next_unless_that_takes_too_long(
    bank: Bank, *, confirmed: bool
) -> None:
    letters = bank.hold_back_letters()
    bank.publish_suspects("rejected", "suspect")
    bank.tick_until(lambda: letters)
    bank.publish("other")
    bank.tick()
    assert bank.begun == ["rejected"]
    if confirmed:
        letters[0](None)
    bank.tick_until(lambda: len(bank.done) == 2, within=0.0 if confirmed else SOON)
    assert bank.done == ["suspect", "other"]


def test_the_poisonous_one_is_found_although_long_ones_run_beside_it(bank: Bank) -> None:
    """Each time it kills the process others are in flight, and none of them is given up."""
    names = iter(f"long-{number}" for number in range(100))
    bank.publish(next(names), "poison")
    for _ in range(10):
        while not bank.worker.dead_letters and "poison" not in bank.gates:
            bank.publish(next(names))
            bank.tick_until(partial(bank.has_more_than, len(bank.gates)), within=SOON)
            last = bank.consumer._dispatcher._suspects._last
            line = last.tasks[0].message.key if last is not None else None
            if line in bank.gates and line != "poison":
                bank.gates[line].set()  # a suspect that hangs would keep it waiting
        if bank.worker.dead_letters:
            break
        bank.kill()

    (letter,) = bank.worker.dead_letters
    assert letter.payload["line"] == "poison"
    assert letter.reason.endswith("3 times the process died or was away too long while it ran")
    assert bank.begun.count("poison") == 3
    assert max(bank.begun.count(line) for line in bank.begun if line != "poison") <= 3

    def is_all_done() -> bool:
        for gate in [*bank.gates.values()]:
            gate.set()
        return {*bank.done} == {*bank.begun} - {"poison"} and bank.consumer.is_idle()

    bank.tick_until(is_all_done, within=100)
    assert len(bank.worker.dead_letters) == 1
    found = [e for e in bank.worker.runtime_events if isinstance(e, SuspectFound)]
    assert {e.crashes for e in found if e.message_id != letter.message_id} <= {1, 2}
    assert {e.crashes for e in found if e.message_id == letter.message_id} == {1, 2, 3}


def test_one_that_is_found_again_waits_for_quiet_again(bank: Bank) -> None:
    bank.publish("long")
    bank.tick_until(lambda: bank.begun == ["long"])
    bank.publish_suspects("suspect")
    bank.tick_until(lambda: bank.worker.runtime_events)
    bank.worker.clock.advance(0.9)
    bank.tick()
    bank.consumer.pause(["work"])
    bank.tick()
    bank.worker.clock.advance(0.9)
    bank.consumer.pause([])
    bank.tick()
    assert bank.begun == ["long"]
    bank.worker.clock.advance(1)
    bank.tick_until(lambda: bank.done == ["suspect"])
