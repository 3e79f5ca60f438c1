"""Sharding inside the consumer works: one shard, one process, and yet each key in order."""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from time import monotonic

import pytest

from waiting import until
from worker import App, Event, RetryPolicy
from worker.consumer import Consumer
from worker.dedup.base import StoreOptions
from worker.dedup.memory import MemoryStore
from worker.ending import Finish
from worker.transport import memory

KEYS = 16
EACH = 25
PATIENCE = 20.0

numbers = count(1)


class Step(Event, name="step", key="key"):
    """The ``number``-th of its key."""

    key: str
    number: int


@contextmanager
def consuming(app: App) -> Iterator[Consumer]:
    """Publish the steps of all keys in turn, and run one consumer of the one shard meanwhile."""
    name = f"sharding-inside-{next(numbers)}"
    settings = app.configure(
        {"broker": f"memory://{name}", "dedup": "memory://", "shards": 1, "concurrency": KEYS}
    )
    consumer = Consumer(app, settings, shards=[0], store=MemoryStore(StoreOptions()))
    consumer.open()
    with app.publisher() as out:
        for number in range(EACH):
            for key in range(KEYS):
                out.publish(Step(key=f"key-{key}", number=number))
    thread = threading.Thread(target=consumer.run, daemon=True)
    thread.start()
    try:
        yield consumer
    finally:
        consumer.drain(monotonic() + PATIENCE)
        thread.join(PATIENCE)
        app.close()
        memory.forget(name)
    assert consumer.ended is Finish.DRAINED


class Record:
    """What was done of each key, and how many keys were at work at the same time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[str] = set()
        self.done: defaultdict[str, list[int]] = defaultdict(list)
        self.most = 0

    def begin(self, step: Step) -> None:
        with self._lock:
            assert step.key not in self._running, "one step of a key at a time"
            self._running.add(step.key)
            self.most = max(self.most, len(self._running))

    def end(self, step: Step) -> None:
        with self._lock:
            self._running.remove(step.key)
            self.done[step.key].append(step.number)

    def is_complete(self) -> bool:
        with self._lock:
            return sum(map(len, self.done.values())) >= KEYS * EACH


@pytest.mark.parametrize("kind", ["threads", "coroutines"])
def test_each_key_in_order_while_different_keys_run_in_parallel(kind: str) -> None:
    app, record = App("inside"), Record()
    gate = threading.Barrier(KEYS, timeout=PATIENCE)
    arrived: list[str] = []
    all_arrived = asyncio.Event()

    def in_a_thread(step: Step) -> None:
        record.begin(step)
        if step.number == 0:
            gate.wait()  # opens when all keys are at work together, and not before
        record.end(step)

    async def in_the_loop(step: Step) -> None:
        record.begin(step)
        if step.number == 0:
            arrived.append(step.key)
            if len(arrived) == KEYS:
                all_arrived.set()
            await asyncio.wait_for(all_arrived.wait(), PATIENCE)
        else:
            await asyncio.sleep(0)
        record.end(step)

    handler = in_a_thread if kind == "threads" else in_the_loop
    app.on(Step, name="work", retry=RetryPolicy(attempts=1))(handler)
    with consuming(app):
        until(record.is_complete, PATIENCE, "all is done")

    assert record.done == {f"key-{key}": list(range(EACH)) for key in range(KEYS)}
    assert record.most == KEYS


def test_a_key_that_takes_long_keeps_no_other_waiting() -> None:
    app, record = App("inside"), Record()
    others_done = threading.Event()

    def work(step: Step) -> None:
        record.begin(step)
        if (step.key, step.number) == ("key-0", 0):
            assert others_done.wait(PATIENCE)
        record.end(step)
        if all(len(record.done[f"key-{key}"]) == EACH for key in range(1, KEYS)):
            others_done.set()

    app.on(Step, retry=RetryPolicy(attempts=1))(work)
    with consuming(app):
        until(record.is_complete, PATIENCE, "all is done")

    assert record.done["key-0"] == list(range(EACH))
