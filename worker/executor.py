"""From a claimed task to its outcome: the whole idempotency argument on one page.

1. A task reaches this file only after the dedup store answered FRESH to its claim: this process
   owns (handler, message id), and the store has counted the attempt already. So a process that
   dies anywhere below is found out by whoever claims the record next.
   A claim, or the lease of the shard, that may have expired by now (the process was paused) is not
   trusted: the task comes back as never run. That is looked at in the handler's own thread, before
   anything of step 2.
2. The payload is decoded and the handler called, wrapped in the app's middleware. This is the only
   place that runs user code for a message. A handler with revisions is not called for a message
   that comes too late, or too early (``revisions.py``).
3. Whatever the handler does comes back as a value, an :class:`~worker.outcome.Outcome`; nothing is
   recorded, published or acknowledged here. What the handler published waits in the outcome.
4. The I/O thread takes the outcome and keeps the order that all promises rest on::

       effect (2) -> children confirmed -> done in the store -> ack to the broker

   A crash after any arrow repeats what is right of it and nothing left of it: an id that is done
   is never executed again; a message that is not acknowledged comes again and is a duplicate;
   children that are published again carry the same ids. Only a crash between the effect and *done*
   executes twice, or an absence there for longer than a claim lives, unless the effect and its
   memory are one transaction (``Context.once``).
5. A stale owner (its claim expired while it was paused) finds out at *done*, which is
   compare-and-set on its token, and changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from random import Random
from time import monotonic
from typing import TYPE_CHECKING, Any

from worker.calling import call_of, refuse_unrun
from worker.context import Context
from worker.errors import AlreadyDone, Reject, Retry
from worker.leases.base import suspended
from worker.logs import HandlersLogger
from worker.middleware import compose
from worker.outcome import ABANDONED, DONE, DeadLetter, Done, Outcome, RetryLater
from worker.payload import Unfit
from worker.revisions import judge

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from worker.app import App
    from worker.codec import Codec
    from worker.task import Task

_MAX_DETAIL = 16 * 1024
_MAX_REASON = 500


class Executor:
    """Runs tasks. Made once a process; :meth:`run` and :meth:`run_async` from any pool thread."""

    def __init__(
        self,
        app: App,
        codec: Codec,
        state: Any,
        random: Random | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.clock = clock
        self._state = state
        self._random = random or Random()
        self._encode = codec.child
        self._logger = HandlersLogger(logging.getLogger(f"worker.handler.{app.name}"), {})
        self._calls: dict[str, Callable[[Context], Any]] = {
            name: compose(app.middlewares, call_of(handler))
            for name, handler in app.handlers.items()
        }
        #: The fence of each shard that may be worked on, and until when; the I/O thread sets both.
        self.fences: dict[int, int] = {}
        self.trusted_until = float("inf")
        #: Set when nothing new may begin.
        self.draining = False
        #: Set when coroutines that run are cancelled, because the process ends.
        self.closing = False
        #: Handlers of which nothing may begin.
        self.paused: frozenset[str] = frozenset()

    def is_trusted(self, now: float) -> bool:
        """Tell whether whoever assigns the shards was heard of lately enough."""
        return now + suspended() <= self.trusted_until

    def run(self, task: Task) -> Outcome:
        """Run a plain handler to its outcome. Never raises."""
        fence = self._begin(task)
        if fence is None:
            return ABANDONED
        context = self._context(task, fence)
        try:
            context.event = task.handler.decode(task.message)
            if task.progress is not None and (other := _passed_over(task, context.event)):
                return other
            result = self._calls[task.handler_name](context)
            if result is not None:
                refuse_unrun(result, task.handler)
            context.check_committed()
        except AlreadyDone:
            pass  # what it published before that is published again, under the same ids
        except BaseException as error:  # noqa: BLE001 - SystemExit of a handler is a failure like any other
            context.roll_back()
            return self._judge(task, error)
        finally:
            children = context.end()
            task.started = 0.0
        if task.progress is not None:
            task.progress.note()
        return Done(tuple(children)) if children else DONE

    async def run_async(self, task: Task) -> Outcome:
        """Run a coroutine handler to its outcome, cancelling it at its time limit."""
        fence = self._begin(task)
        if fence is None:
            return ABANDONED
        context = self._context(task, fence)
        try:
            context.event = task.handler.decode(task.message)
            if task.progress is not None and (other := _passed_over(task, context.event)):
                return other
            async with asyncio.timeout(task.handler.timeout):
                await self._calls[task.handler_name](context)
            context.check_committed()
        except AlreadyDone:
            pass  # as in run
        except asyncio.CancelledError as error:
            if self.closing:
                raise  # the claim is left to expire
            _uncancel()  # it was the handler itself, or another one
            context.roll_back()
            return self._judge(task, error)
        except BaseException as error:  # noqa: BLE001 - as in run
            context.roll_back()
            return self._judge(task, error)
        finally:
            children = context.end()
            task.started = 0.0
        if task.progress is not None:
            task.progress.note()
        return Done(tuple(children)) if children else DONE

    def may_begin(self, tasks: Iterable[Task]) -> bool:
        """Tell whether all of ``tasks`` could begin now."""
        now = self.clock()
        return all(self._fence_for(task, now) is not None for task in tasks)

    def _begin(self, task: Task) -> int | None:
        """Return the fence that ``task`` runs under from now on; None where it must not begin."""
        task.started = self.clock()
        fence = self._fence_for(task, task.started)
        if fence is None:
            task.started = 0.0
        return fence

    def _fence_for(self, task: Task, now: float) -> int | None:
        """Return the fence that ``task`` may begin under at ``now``; None where it must not."""
        fence = self.fences.get(task.message.shard)
        if (
            fence is None
            or self.draining
            or task.handler_name in self.paused
            or now > task.trusted_until
            or not self.is_trusted(now)
        ):
            return None
        return fence

    def _context(self, task: Task, fence: int) -> Context:
        message, handler = task.message, task.handler
        return Context(
            message,
            handler.full_name,
            task.attempt,
            fence,
            None if handler.timeout is None else task.started + handler.timeout,
            self._state,
            self._logger,
            self._encode,
        )

    def _judge(self, task: Task, error: BaseException) -> Outcome:
        """Turn what a handler raised into an outcome, by its retry policy. Never raises."""
        try:
            return self._decide(task, error)
        except BaseException as broken:  # noqa: BLE001 - an error without a text, a wait strategy that fails
            names = f"{type(error).__name__}, and judging that: {type(broken).__name__}"
            return DeadLetter(f"failed at attempt {task.attempt}: {names}", exhausted=True)

    def _decide(self, task: Task, error: BaseException) -> Outcome:
        match error:
            case Unfit():
                return DeadLetter(str(error)[:_MAX_REASON])
            case Reject():
                return DeadLetter(f"rejected by the handler: {error.reason}"[:_MAX_REASON])
            case TimeoutError() if task.is_async and task.handler.timeout is not None:
                text = f"TimeoutError: {str(error) or f'over its {task.handler.timeout} s'}"
            case _:
                text = f"{type(error).__name__}: {error}"
        reason = text[:_MAX_REASON]
        wait = None
        try:
            wait = task.handler.retry.next_wait(task.attempt, error, self._random)
        finally:
            if not isinstance(error, Retry):
                self._tell(task, error, wait)
        if wait is None:
            detail = "".join(traceback.format_exception(error, limit=-20))
            return DeadLetter(
                f"failed at attempt {task.attempt}: {reason}",
                exhausted=True,
                asked=isinstance(error, Retry),
                detail=detail[-_MAX_DETAIL:],
            )
        if isinstance(error, Retry) and error.delay is not None:
            wait = error.delay
        return RetryLater(wait, reason, asked=isinstance(error, Retry))

    def _tell(self, task: Task, error: BaseException, wait: float | None) -> None:
        """Write the one record of an attempt that failed. What comes of it is told where it is."""
        message = task.message
        self._logger.warning(
            "%s failed at attempt %d, %s: %s%s",
            task.handler.full_name,
            task.attempt,
            "its last" if wait is None else f"and is tried again in {wait:.3g} s",
            message.name,
            "" if message.key is None else f" with key {message.key!r}",
            exc_info=error,
            extra={
                "shard": message.shard,
                "message_id": message.id,
                "handler": task.handler_name,
            },
        )


def _passed_over(task: Task, event: object) -> Outcome | None:
    """Return what becomes of a task by its revision; None: it runs. Raises Unfit."""
    revisions, progress = task.handler.revisions, task.progress
    if revisions is None or progress is None:
        return None
    return judge(revisions, progress, event, task.message)


def _uncancel() -> None:
    """Let the task that runs go on, of which somebody asked that it be cancelled."""
    current = asyncio.current_task()
    while current is not None and current.cancelling():
        current.uncancel()
