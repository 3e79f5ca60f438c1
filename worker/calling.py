"""The innermost call of each handler: the user's function or method, by the shape that it has."""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, Any

from worker.errors import ConfigurationError
from worker.relays import collected

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.context import Context
    from worker.handler import Handler
    from worker.relaying import Relaying


def call_of(handler: Handler) -> Callable[[Context], Any]:
    """Return the call of the user's function or method, with the arguments that it takes.

    An instance of a handler class is made here. Raises ConfigurationError where that fails.
    """
    target = _instance(handler).handle if handler.is_class else handler.target
    if handler.relay is not None:
        return _relaying(handler, handler.relay, target)
    if handler.is_async:

        async def call_async(context: Context) -> Any:
            if handler.takes_context:
                return await target(context.event, context)
            return await target(context.event)

        return call_async

    def call(context: Context) -> None:
        event = context.event
        result = target(event, context) if handler.takes_context else target(event)
        if result is not None:
            refuse_unrun(result, handler)

    return call


def _instance(handler: Handler) -> Any:
    try:
        return handler.target()
    except Exception as error:
        raise ConfigurationError(
            f"making the handler class {handler.full_name} raised {type(error).__name__}: {error};"
            " it is made once a process, without arguments"
        ) from error


def _relaying(handler: Handler, relay: Relaying, target: Any) -> Callable[[Context], Any]:
    """Return the innermost call of a relay: it publishes what the user's function returns."""
    target = collected(target) if inspect.isasyncgenfunction(target) else target

    def arguments(context: Context) -> tuple[Any, ...]:
        context.is_relay = True
        return (context.event, context) if handler.takes_context else (context.event,)

    async def call_async(context: Context) -> None:
        relay.publish(await target(*arguments(context)), context)

    def call(context: Context) -> None:
        result = target(*arguments(context))
        if inspect.isawaitable(result):
            refuse_unrun(result, handler)
        relay.publish(result, context)

    return call_async if handler.is_async else call


def refuse_unrun(result: object, handler: Handler) -> None:
    """Raise TypeError where what a call returned would still have to be run, which nobody does."""
    kind = type(result).__name__
    if inspect.isawaitable(result):
        told = f"returned an awaitable ({kind}); make it 'async def', and its middleware plain"
    elif inspect.isgenerator(result) or inspect.isasyncgen(result):
        told = f"returned a {kind}, of which nothing has run; a handler has no 'yield'"
    else:
        return
    if asyncio.iscoroutine(result):
        result.close()
    raise TypeError(f"{handler.full_name} is a plain function that {told}")
