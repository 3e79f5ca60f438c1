"""Whatever a handler does to its thread, its event loop or its process: the others go on."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from worker import App, Event, RetryPolicy
from worker.consumer import Consumer
from worker.pool.threads import _FORKED
from worker.testing import TestWorker

PATIENCE = 20.0
SOON = RetryPolicy(attempts=2, wait="fixed", first_wait=0.0)


class Step(Event, name="step", key="line"):
    """One of a line."""

    line: str


@contextmanager
def served(app: App) -> Iterator[tuple[TestWorker, Any]]:
    """Give a worker, and a consumer with real pools in its stead."""
    with TestWorker(app, clock=time.monotonic) as worker:
        worker.drain()
        consumer = Consumer(
            app, worker.settings, shards=range(worker.settings.shards), store=worker.store
        )
        consumer.open()
        yield worker, consumer
        consumer.stop()
        consumer.close()


def tick_until(consumer: Consumer, condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, consumer.statistics()
        consumer.tick(0.01)


async def leave() -> None:
    sys.exit(3)


async def interrupt() -> None:
    raise KeyboardInterrupt


async def wait_for_one_that_leaves() -> None:
    await asyncio.wait_for(leave(), 5)


async def wait_for_one_that_interrupts() -> None:
    await asyncio.wait_for(interrupt(), 5)


async def leave_in_a_callback() -> None:
    asyncio.get_running_loop().call_soon(sys.exit, 3)
    await asyncio.sleep(0.05)


async def leave_in_a_group() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(leave())
        await asyncio.sleep(5)


async def cancel_oneself() -> None:
    current = asyncio.current_task()
    assert current is not None
    current.cancel()
    await asyncio.sleep(5)


async def cancel_oneself_at_the_end() -> None:
    current = asyncio.current_task()
    assert current is not None
    current.cancel()


async def cancel_everybody() -> None:
    for task in asyncio.all_tasks():
        task.cancel()
    await asyncio.sleep(5)


@pytest.mark.parametrize(
    "deed",
    [
        wait_for_one_that_leaves,
        wait_for_one_that_interrupts,
        leave_in_a_callback,
        leave_in_a_group,
        cancel_oneself,
        cancel_oneself_at_the_end,
        cancel_everybody,
    ],
    ids=lambda deed: deed.__name__,
)
def test_a_coroutine_takes_no_other_along(deed: Callable[[], Awaitable[None]]) -> None:
    app = App("bank")
    done: list[str] = []

    @app.on(Step, retry=SOON)
    async def work(event: Step) -> None:
        if event.line == "bad":
            await deed()
        else:
            await asyncio.sleep(0.001)
        done.append(event.line)

    with served(app) as (worker, consumer):
        for line in ("bad", "a", "b"):
            worker.publish(Step(line=line))
        tick_until(consumer, lambda: {"a", "b"} <= {*done})
        tick_until(consumer, lambda: consumer.counters.acked == 3)
        worker.publish(Step(line="bad"))
        worker.publish(Step(line="c"))
        tick_until(consumer, lambda: consumer.counters.acked == 5)
        assert "c" in done


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_child_that_a_handler_forks_runs_nothing_that_waits_here() -> None:
    app = App("bank")
    read, write = os.pipe()
    endings: list[int] = []

    @app.on(Step)
    def work(event: Step) -> None:
        os.write(write, b".")
        if event.line == "0" and (child := os.fork()):
            endings.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    with served(app) as (worker, consumer):
        for line in range(40):
            worker.publish(Step(line=str(line)))
        tick_until(consumer, lambda: consumer.counters.acked == 40)
        assert endings == [_FORKED]
        assert os.read(read, 1000) == b"." * 40
    os.close(read)
    os.close(write)


class Unspeakable(Exception):
    """An error whose text ends the program."""

    def __str__(self) -> str:
        """Leave."""
        raise SystemExit(3)


def test_an_error_that_ends_whoever_reads_it_is_a_dead_letter() -> None:
    app = App("bank")
    done: list[str] = []

    @app.on(Step, retry=SOON)
    def work(event: Step) -> None:
        if event.line == "bad":
            raise Unspeakable
        done.append(event.line)

    with served(app) as (worker, consumer):
        for line in ("bad", "a"):
            worker.publish(Step(line=line))
        tick_until(consumer, lambda: consumer.counters.acked == 2)
        assert done == ["a"]
        assert consumer.counters.dead_lettered == 1
