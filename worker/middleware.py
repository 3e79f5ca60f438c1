"""What wraps a handler: a function of the context and of what comes next.

::

    def timed(context, call_next):
        start = perf_counter()
        try:
            return call_next(context)
        finally:
            context.logger.info("took %.3f s", perf_counter() - start)

A plain function wraps plain handlers, and coroutine handlers too: there ``call_next`` returns an
awaitable, which it must return. An ``async def`` middleware wraps coroutine handlers only.
Middleware is for what surrounds a handler (logs, traces, transactions). It never decides whether
a message counts as done: only what it raises does, exactly as if the handler had raised it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from worker.errors import ConfigurationError
from worker.signature import is_async

if TYPE_CHECKING:
    from worker.context import Context

CallNext = Callable[["Context"], Any]
Middleware = Callable[["Context", CallNext], Any]


def compose(middlewares: Sequence[Middleware], handler: CallNext) -> CallNext:
    """Return ``handler`` wrapped by every middleware; the first one given is the outermost."""
    call = handler
    for middleware in reversed(middlewares):
        call = partial(_step, middleware, call)
    return call


def refuse_async(middlewares: Sequence[Middleware], plain: str, told: str) -> None:
    """Refuse what would keep ``plain``, a plain handler, from running: nobody awaits what it gives.

    Raises ConfigurationError, which begins with ``told``.
    """
    for middleware in middlewares:
        if is_async(middleware):
            name = getattr(middleware, "__name__", type(middleware).__name__)
            raise ConfigurationError(
                f"{told}({name}): an 'async def' middleware cannot wrap the plain handler"
                f" {plain!r}; a plain one can wrap both kinds"
            )


def _step(middleware: Middleware, call_next: CallNext, context: Context) -> Any:
    return middleware(context, call_next)
