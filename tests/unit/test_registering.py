"""What cannot be meant is told where it is written, and not where it would go wrong."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from worker import App, Context, Event
from worker.errors import ConfigurationError
from worker.testing import TestWorker

app = App("bank")


class Deposited(Event, name="user.deposited"):
    """Money came in."""


def handle(event: Deposited) -> None:
    """Do nothing."""


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"retry": 3}, "retry=3; a RetryPolicy"),
        ({"timeout": "3"}, "timeout='3'; seconds above zero"),
        ({"timeout": 0}, "timeout=0; seconds above zero"),
    ],
)
def test_options_of_a_handler_are_checked(facts: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        app.on(Deposited, **facts)(handle)


def test_a_decorator_without_what_it_observes_is_told() -> None:
    on: Any = app.on
    with pytest.raises(ConfigurationError, match="without saying what handle observes"):
        on(handle)


def a_generator(event: Deposited) -> Iterator[int]:
    yield 1


async def an_async_generator(event: Deposited) -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize("generator", [a_generator, an_async_generator])
def test_a_handler_with_a_yield_would_never_run_and_is_refused(generator: Any) -> None:
    with pytest.raises(ConfigurationError, match="has a 'yield', so calling it runs nothing"):
        App("bank").on(Deposited)(generator)


async def an_async_middleware(context: Context, call_next: Callable[[Context], Any]) -> Any:
    return await call_next(context)


def test_an_async_middleware_would_keep_a_plain_handler_from_running_and_is_refused() -> None:
    mixed = App("bank")
    mixed.on(Deposited)(handle)
    mixed.use(an_async_middleware)
    with (
        pytest.raises(ConfigurationError, match="cannot wrap the plain handler 'handle'"),
        TestWorker(mixed),
    ):
        pass


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("lazy", [an_async_middleware, lambda context, call_next: iter_(context)])
def test_what_nobody_runs_is_a_failure_however_it_got_there(lazy: Any) -> None:
    sly = App("bank")
    sly.on(Deposited)(handle)
    sly.use(lambda context, call_next: lazy(context, call_next))  # noqa: PLW0108 - hides what it is
    with TestWorker(sly) as worker:
        worker.publish(Deposited())
        worker.run()
        (letter,) = worker.dead_letters
    assert "is a plain function that returned" in letter.reason


def iter_(context: Context) -> Iterator[Context]:
    yield context


def test_what_cannot_wrap_anything_is_refused() -> None:
    use: Any = App("bank").use
    with pytest.raises(ConfigurationError, match="a function of"):
        use("timing")


@pytest.mark.parametrize("pattern", ["user*", "user.#x", "**"])
def test_a_pattern_that_matches_nothing_is_refused(pattern: str) -> None:
    with pytest.raises(ConfigurationError, match="would match nothing"):
        App("bank").on(pattern)(handle)


async def an_async_lifespan() -> AsyncIterator[None]:
    yield


def test_a_lifespan_that_cannot_be_entered_is_told() -> None:
    lifespan: Any = App("bank").lifespan
    with pytest.raises(ConfigurationError, match="not an async one"):
        lifespan(an_async_lifespan)

    bare = App("bank")
    lifespan = bare.lifespan
    lifespan(lambda: None)
    with pytest.raises(ConfigurationError, match="has no 'yield'"), TestWorker(bare):
        pass


@pytest.mark.parametrize("is_async", [False, True])
def test_a_transaction_that_was_forgotten_is_a_failure(tmp_path: Path, *, is_async: bool) -> None:
    forgetful = App("bank")

    def write(context: Context) -> None:
        db = sqlite3.connect(tmp_path / "accounts.db")
        context.once(db)
        if context.attempt == 2:
            db.commit()

    async def take_time(event: Deposited, context: Context) -> None:
        await asyncio.sleep(0)
        write(context)

    def take(event: Deposited, context: Context) -> None:
        write(context)

    forgetful.on(Deposited, name="take")(take_time if is_async else take)
    with TestWorker(forgetful) as worker:
        worker.publish(Deposited())
        worker.run()
        assert [each.attempt for each in worker.executed] == [1, 2]
        assert worker.dead_letters == []
