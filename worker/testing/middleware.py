"""A middleware that runs every handler twice: who passes with it is idempotent.

The runtime executes an id once, but for one window that no runtime can close: a process that dies
between the effect and its record executes again (guarantee P2). What that does to an app can be
tried in any test::

    app.use(duplicate_everything)
    with TestWorker(app) as worker:
        worker.publish(UserDeposited(user_id="u1", amount=Decimal(5)))
        worker.run()
    assert balance("u1") == 5
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from worker.context import Context
    from worker.middleware import CallNext


def duplicate_everything(context: Context, call_next: CallNext) -> Any:
    """Run the handler, and run it once more, as after a crash that left no trace of the first run.

    For plain and for coroutine handlers. Both runs have the same event, ids and attempt; what
    both publish is sent twice under the same ids, as it would be. A handler that raises is not
    run a second time.
    """
    result = call_next(context)
    if inspect.isawaitable(result):
        return _again_async(result, context, call_next)
    context.check_committed()
    first = context.restart()
    result = call_next(context)
    context.children[:0] = first
    return result


async def _again_async(running: Awaitable[Any], context: Context, call_next: CallNext) -> Any:
    await running
    context.check_committed()
    first = context.restart()
    result = await call_next(context)
    context.children[:0] = first
    return result
