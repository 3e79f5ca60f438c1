"""Middleware surrounds a handler: the first one used is the outermost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from worker.context import Context
from worker.middleware import CallNext, Middleware, compose

#: compose only hands it through.
CONTEXT = cast(Context, object())


def noting(log: list[str], name: str) -> Middleware:
    """Return a middleware that notes when it is entered and left."""

    def middleware(context: Context, call_next: CallNext) -> Any:
        log.append(f"{name} in")
        try:
            return call_next(context)
        finally:
            log.append(f"{name} out")

    return middleware


def test_the_first_one_is_the_outermost() -> None:
    log: list[str] = []
    call = compose([noting(log, "a"), noting(log, "b")], lambda _: log.append("handler"))
    call(CONTEXT)

    assert log == ["a in", "b in", "handler", "b out", "a out"]


def test_without_middleware_the_handler_is_called_as_it_is() -> None:
    def handler(_: Context) -> None: ...

    assert compose([], handler) is handler


def test_everyone_gets_the_context() -> None:
    seen: list[object] = []

    def middleware(context: Context, call_next: CallNext) -> Any:
        seen.append(context)
        return call_next(context)

    compose([middleware], seen.append)(CONTEXT)
    assert seen == [CONTEXT, CONTEXT]


def test_what_the_handler_raises_passes_through_all_of_them() -> None:
    log: list[str] = []

    def handler(_: Context) -> None:
        raise LookupError

    with pytest.raises(LookupError):
        compose([noting(log, "a")], handler)(CONTEXT)
    assert log == ["a in", "a out"]


def test_a_middleware_may_raise_instead_of_calling_on() -> None:
    def closed(_context: Context, _call_next: CallNext) -> None:
        raise PermissionError

    with pytest.raises(PermissionError):
        compose([closed], lambda _: pytest.fail("the handler ran"))(CONTEXT)


def test_a_call_can_be_composed_once_and_made_often() -> None:
    log: list[str] = []
    call = compose([noting(log, "a")], lambda _: None)
    call(CONTEXT)
    call(CONTEXT)

    assert log == ["a in", "a out"] * 2


def test_a_plain_middleware_hands_on_what_a_coroutine_handler_returns() -> None:
    log: list[str] = []

    async def handler(_: Context) -> str:
        log.append("handler")
        return "done"

    assert asyncio.run(compose([noting(log, "a")], handler)(CONTEXT)) == "done"
    assert log == ["a in", "a out", "handler"]


def test_an_async_middleware_surrounds_the_whole_of_a_coroutine_handler() -> None:
    log: list[str] = []

    async def middleware(context: Context, call_next: Callable[[Context], Any]) -> None:
        log.append("in")
        await call_next(context)
        log.append("out")

    async def handler(_: Context) -> None:
        await asyncio.sleep(0)
        log.append("handler")

    asyncio.run(compose([middleware], handler)(CONTEXT))
    assert log == ["in", "handler", "out"]
