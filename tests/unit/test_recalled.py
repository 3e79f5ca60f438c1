"""What is claimed and stands behind long handlers comes back once it must not begin any more."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from worker import App, Context, Event
from worker.consumer import Consumer
from worker.dedup.base import Answers, Batch
from worker.dedup.memory import MemoryStore
from worker.ending import Finish
from worker.errors import DedupUnavailable
from worker.testing import TestWorker

PATIENCE = 10.0


class Step(Event, name="step", key="line"):
    """One of a line."""

    line: str


class Mail(Event, name="mail", key="line"):
    """It has another handler."""

    line: str


class Store(MemoryStore):
    """One that can be away."""

    away = False

    def apply(self, batch: Batch) -> Answers:
        if self.away:
            raise DedupUnavailable("it is away")
        return super().apply(batch)


class Service:
    """Two handlers; the line ``long`` takes until it is told."""

    def __init__(self, *, is_async: bool) -> None:
        self.app = App("bank")
        self.begun: list[tuple[str, int]] = []
        self.go_on = threading.Event()
        for event in (Step, Mail):
            name = event.__name__.lower()
            self.app.on(event, name=name)(self.work_async if is_async else self.work)

    def work(self, event: Step | Mail, context: Context) -> None:
        self.begun.append((event.line, context.attempt))
        if event.line == "long":
            self.go_on.wait()

    async def work_async(self, event: Step | Mail, context: Context) -> None:
        await asyncio.to_thread(self.work, event, context)

    def has_begun(self, line: str) -> bool:
        return any(begun == line for begun, _ in self.begun)


class Stage:
    """A consumer with one thread, which a long handler has, on a clock that stands still."""

    def __init__(self, service: Service, worker: TestWorker) -> None:
        self.service = service
        self.worker = worker
        self.closed = False
        worker.drain()
        worker.store.__class__ = Store
        self.store: Any = worker.store
        self.consumer: Any = Consumer(
            worker.app,
            worker.settings,
            shards=range(worker.settings.shards),
            store=worker.store,
            clock=worker.clock,
        )
        self.consumer.open()
        self.worker.publish(Step(line="long"))
        self.tick_until(lambda: service.has_begun("long"))

    def tick_until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, self.consumer.statistics()
            self.consumer.tick(0.01)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.consumer.close()

    def claim(self, *events: Event) -> None:
        """Publish them, and let them wait for the thread."""
        for event in events:
            self.worker.publish(event)
        self.tick_until(lambda: len(self.consumer._dialogue.owned) == 1 + len(events))


@contextmanager
def stage_of(*, is_async: bool, **settings: Any) -> Iterator[Stage]:
    service = Service(is_async=is_async)
    given = {"concurrency": 1, "claim_ttl": 60.0, **settings}
    with TestWorker(service.app, settings=given) as worker:
        stage = Stage(service, worker)
        try:
            yield stage
        finally:
            service.go_on.set()
            stage.close()


kinds = pytest.mark.parametrize("is_async", [False, True], ids=["plain", "coroutine"])


@kinds
def test_a_drain_gives_back_at_once_what_never_began(is_async: bool) -> None:
    with stage_of(is_async=is_async) as stage:
        stage.claim(Step(line="behind"))
        stage.consumer.drain(stage.worker.clock() + 5)
        stage.tick_until(lambda: len(stage.consumer._dialogue.owned) == 1)
        stage.worker.clock.advance(6)
        stage.tick_until(lambda: stage.consumer.ended)
        assert stage.consumer.ended is Finish.ABANDONED
        stage.close()

        stage.worker.run(advance=False)
        assert stage.service.begun == [("long", 1), ("behind", 1)], "no attempt, no wait"


def test_who_is_stopped_says_of_what_never_began_that_it_did_not() -> None:
    with stage_of(is_async=False) as stage:
        stage.claim(Step(line="behind"))
        stage.consumer.stop()
        stage.close()

        stage.worker.run(advance=False)
        assert stage.service.begun == [("long", 1), ("behind", 1)]


@kinds
def test_a_pause_does_not_wait_for_the_handlers_of_others(is_async: bool) -> None:
    with stage_of(is_async=is_async) as stage:
        stage.claim(Mail(line="mail"))
        told: list[bool] = []
        stage.consumer.on_paused = lambda: told.append(True)
        stage.consumer.pause(["mail"])
        stage.tick_until(lambda: told)
        assert stage.service.begun == [("long", 1)]

        stage.consumer.pause([])
        stage.service.go_on.set()
        stage.tick_until(lambda: len(stage.service.begun) == 2)
        assert stage.service.begun[1] == ("mail", 1)


def test_a_run_comes_back_whole_where_one_of_its_handlers_is_paused() -> None:
    with stage_of(is_async=False) as stage:
        dispatcher = stage.consumer._dispatcher
        dispatcher._rate, dispatcher._seconds = 1e6, 0.0  # as measured on a service at full speed
        dispatcher.measure = lambda _now: None
        stage.claim(Step(line="both"), Mail(line="both"))
        assert len(stage.consumer._dispatcher.out) == 2
        told: list[bool] = []
        stage.consumer.on_paused = lambda: told.append(True)
        stage.consumer.pause(["mail"])
        stage.tick_until(lambda: told)

        stage.service.go_on.set()
        stage.tick_until(lambda: len(stage.service.begun) == 2)
        stage.consumer.pause([])
        stage.tick_until(lambda: len(stage.service.begun) == 3)
        assert stage.service.begun == [("long", 1), ("both", 1), ("both", 1)]


@kinds
def test_what_the_store_grants_after_a_drain_began_goes_back_too(is_async: bool) -> None:
    with stage_of(is_async=is_async) as stage:
        stage.store.away = True
        stage.worker.publish(Step(line="behind"))
        stage.tick_until(lambda: stage.consumer._dialogue.away_since is not None)
        stage.consumer.drain(stage.worker.clock() + 50)
        stage.store.away = False
        stage.worker.clock.advance(5)
        stage.tick_until(lambda: not stage.consumer._dialogue.busy)
        stage.tick_until(lambda: len(stage.consumer._dispatcher.out) == 1)
        assert stage.service.begun == [("long", 1)]
        assert len(stage.consumer._dialogue.owned) == 1
