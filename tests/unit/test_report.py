"""What a consumer tells of each shard."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Collection
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from waiting import until
from worker import App, Event
from worker.consumer import Consumer
from worker.report import Census, Marks
from worker.settlement import Settlement
from worker.supervisor.control import MAX_LINE, Beat, encode
from worker.supervisor.totals import counted, gauges
from worker.testing import TestWorker
from worker.transport.queuechannel import QueueChannel


class Link:
    """A link that answers at once how full a queue is."""

    def __init__(self, shards: int) -> None:
        self.channels = [QueueChannel(n, f"q.{n}", object(), 256) for n in range(shards)]
        self.surveyed: dict[str, int] = {}
        self.asked: list[str] = []
        self.is_up = True

    def survey(self, queues: Collection[str]) -> bool:
        if self.is_up:
            self.asked += queues
            self.surveyed.update(dict.fromkeys(queues, 100_000))
        return self.is_up


def census(link: Link, *, held: Collection[Any] = (), out: Collection[Any] = ()) -> Census:
    dispatcher: Any = SimpleNamespace(out=out, lanes=SimpleNamespace(held=held))
    return Census(link, dispatcher)  # type: ignore[arg-type] # what it uses of them


def deliver(settlement: Settlement, *tags: int) -> None:
    for tag in tags:
        settlement.deliver(tag)


def test_the_age_of_a_tag_is_that_of_the_mark_that_covers_it() -> None:
    marks = Marks()
    for highest, now in ((10, 100.0), (10, 101.0), (20, 102.0)):
        marks.note(highest, now)

    assert marks.age(1, 110.0) == 10.0
    assert marks.age(10, 110.0) == 10.0
    assert marks.age(11, 110.0) == 8.0


def test_a_channel_that_is_stuck_for_hours_keeps_few_marks_and_its_oldest_age() -> None:
    marks = Marks()
    for beat in range(10_000):
        marks.note(beat + 1, float(beat))

    assert len(marks._marks) <= 64  # its promise is about memory
    assert marks.age(1, 10_000.0) == 10_000.0
    for tag in (2_000, 5_000, 8_000):
        assert 10_000 - tag - 1_000 < marks.age(tag, 10_000.0) <= 10_001 - tag


def test_a_shard_tells_what_is_here_and_how_long() -> None:
    link = Link(2)
    channel = link.channels[1]
    lane = SimpleNamespace(shard=1)
    delivery = object()
    task = SimpleNamespace(delivery=delivery, message=SimpleNamespace(shard=1))
    run = SimpleNamespace(lane=lane, tasks=[task, task])
    shards = census(link, held=[lane], out=[run])
    deliver(channel.settlement, 1, 2, 3)
    shards.shards(100.0)
    channel.settlement.finish(1)
    channel.settlement.take()
    deliver(channel.settlement, 4)

    told = shards.shards(107.5)

    assert told["0"] == {}
    assert told["1"] == {
        "unsettled": 3, "in_flight": 2, "waiting": 2, "held": 1, "oldest": 7.5,
    }  # fmt: skip


def test_what_a_halted_shard_had_is_the_brokers_again() -> None:
    link = Link(1)
    (channel,) = link.channels
    deliver(channel.settlement, 1, 2)
    channel.closed = channel.halted = True

    assert census(link).shards(1.0) == {"0": {"halted": True}}


def test_queues_are_looked_at_in_turn_a_few_a_second() -> None:
    link = Link(40)
    shards = census(link)

    shards.survey(0.0)
    assert link.asked == [f"q.{n}" for n in range(16)]
    shards.survey(0.5)
    assert len(link.asked) == 16
    for second in range(1, 5):
        shards.survey(float(second))
    assert {*link.asked} == {c.queue for c in link.channels}
    assert shards.shards(5.0)["39"] == {"depth": 100_000}


def test_a_link_that_is_down_is_asked_again_from_where_it_was() -> None:
    link = Link(20)
    shards = census(link)
    link.is_up = False
    shards.survey(0.0)
    link.is_up = True
    shards.survey(1.0)

    assert link.asked[0] == "q.0"


def test_a_beat_with_the_most_shards_fits_a_line() -> None:
    link = Link(1024)
    link.surveyed = {channel.queue: 12_345_678 for channel in link.channels}
    for channel in link.channels:
        deliver(channel.settlement, *range(1, 257))
        channel.halted = True
    lanes = [SimpleNamespace(shard=n) for n in range(1024)]
    shards = census(link, held=lanes)
    shards.shards(0.0)
    told = shards.shards(86_400.0)

    assert len(told) == 1024
    assert len(encode(Beat({"shards": told}))) < MAX_LINE / 4


def test_numbers_of_shards_are_no_numbers_of_the_process() -> None:
    statistics = {"received": 3, "in_flight": 2, "shards": {"0": {"in_flight": 2}}}

    assert gauges([statistics, statistics]) == {"in_flight": 4}
    assert counted(statistics) == {"received": 3}


class Step(Event, name="step", key="line"):
    line: str


def test_a_dump_begins_with_what_is_in_flight_and_leaves_out_who_waits_for_work() -> None:
    app, begun, go_on = App("bank"), threading.Event(), threading.Event()

    @app.on(Step)
    def hang(_: Step) -> None:
        begun.set()
        go_on.wait(20)

    with TestWorker(app, clock=time.monotonic) as worker:
        worker.drain()
        event_id = worker.publish(Step(line="a"))
        consumer = Consumer(
            app, replace(worker.settings, concurrency=4), shards=[0], store=worker.store
        )
        consumer.open()
        until(lambda: consumer.tick(0.01) is None or begun.is_set(), 20)
        first, *others = consumer.dump()
        go_on.set()
        consumer.stop()
        consumer.close()

    assert first.startswith(f"in flight: bank.hang step {event_id} key=a attempt=1 for ")
    threads = [text for text in others if text.startswith("thread ")]
    assert len([text for text in threads if "in hang" in text]) == 1
    assert not [text for text in threads if text.endswith("while (run := get()) is not None:")]
    assert re.fullmatch(r"[0-9]+ threads for handlers wait for work", others[-1])
