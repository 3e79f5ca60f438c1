"""A barrier has its turn when everything in front of it in its queue is settled, and not before."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count
from typing import Any

import pytest

from waiting import until
from worker import App, Context
from worker.barrier import BARRIER, barrier
from worker.codec import Codec
from worker.config import Settings
from worker.consumer import Consumer
from worker.transport import memory
from worker.transport.capabilities import connect
from worker.transport.outbound import Outbound

_numbers = count()


class Hall:
    """A consumer whose handlers run in threads, and wait for what they are told to."""

    def __init__(self, stack: ExitStack) -> None:
        name = f"barrier-{next(_numbers)}"
        stack.callback(memory.forget, name)
        self.app = App("hall")
        self.began: list[str] = []
        self.may_end = threading.Event()
        stack.callback(self.may_end.set)
        self.app.on("#", name="work")(self._work)
        options = {"broker": f"memory://{name}"}
        self.settings: Settings = stack.enter_context(self.app.configured(options, {}))
        self.codec = Codec.of("hall", self.settings)
        self.consumer = Consumer(self.app, self.settings, shards=[0])
        self.consumer.open()
        stack.callback(self.consumer.close)
        connection = connect(self.settings.broker, heartbeat=0, timeout=5, name="test")
        self.outbound = Outbound(connection, self.settings.broker)
        stack.callback(self.outbound.close)

    def _work(self, event: dict[str, Any], context: Context) -> None:
        told = context.message.barrier or context.name
        self.began.append(told)
        if told == "slow":
            assert self.may_end.wait(30)

    def put(self, *names: str) -> None:
        """Put events into the queue; what begins with b is a barrier."""
        messages = []
        for name in names:
            if name.startswith("b"):
                messages.append(barrier(self.codec, name, "hall.g1.0"))
            else:
                message = self.codec.pack(name, b"{}", message_id=f"id-{name}", key=name)
                message.exchange, message.routing_key = "", "hall.g1.0"
                messages.append(message)
        assert self.outbound.deliver(messages, 5) == [None] * len(names)

    def publish_as_one(self) -> None:
        """Publish an event that looks like a barrier."""
        message = barrier(self.codec, "mine", "")
        message.exchange, message.routing_key = self.codec.events_exchange, BARRIER
        assert self.outbound.deliver([message], 5) == [None]

    def tick(self, number: int) -> None:
        for _ in range(number):
            self.consumer.tick(0.01)

    def work_until(self, *began: str) -> None:
        def is_so() -> bool:
            self.consumer.tick(0.01)
            return {*self.began} == {*began}

        until(is_so, 20)


@pytest.fixture
def hall() -> Iterator[Hall]:
    with ExitStack() as stack:
        yield Hall(stack)


def test_it_waits_for_what_is_before_it_and_for_nothing_behind(hall: Hall) -> None:
    hall.put("slow", "quick", "b1", "later")
    hall.work_until("slow", "quick", "later")
    hall.tick(20)
    assert "b1" not in hall.began

    hall.may_end.set()

    hall.work_until("slow", "quick", "later", "b1")


def test_somebody_s_event_of_its_name_is_none(hall: Hall) -> None:
    hall.put("slow")
    hall.publish_as_one()

    hall.work_until("slow", BARRIER)


def test_one_behind_another_waits_for_it(hall: Hall) -> None:
    hall.put("slow", "b1", "b2")
    hall.tick(20)
    assert hall.began == ["slow"]

    hall.may_end.set()

    hall.work_until("slow", "b1", "b2")
    assert hall.began == ["slow", "b1", "b2"]


def test_in_an_empty_queue_it_has_its_turn_at_once(hall: Hall) -> None:
    hall.put("b1")

    hall.work_until("b1")


def test_it_comes_again_where_its_shard_was_given_up(hall: Hall) -> None:
    hall.put("slow", "b1")
    hall.work_until("slow")
    given: list[int] = []
    hall.consumer.on_given = given.extend

    hall.consumer.give([0])
    hall.tick(5)
    hall.may_end.set()

    def is_given() -> bool:
        hall.consumer.tick(0.01)
        return given == [0]

    until(is_given, 20)
    assert hall.began == ["slow"]
    hall.consumer.take({0: 1}, float("inf"))
    hall.work_until("slow", "b1")
