"""Waits for a server that does not answer yet. For the start; the tick never waits like this."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, TypeVar

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from worker.errors import Unreachable

if TYPE_CHECKING:
    from collections.abc import Callable

    from tenacity import RetryCallState

logger = logging.getLogger("worker")

T = TypeVar("T")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0


def patiently(connect: Callable[[], T], seconds: float) -> T:
    """Return what ``connect`` returns; while it raises Unreachable, try again for ``seconds``.

    Raises the last Unreachable when the time is up, and whatever else ``connect`` raises at once.
    Says in the log, once, what it waits for.
    """

    def say(state: RetryCallState) -> None:
        if state.attempt_number == 1 and state.outcome is not None:
            logger.warning("waiting for up to %g s: %s", seconds, state.outcome.exception())

    retrying = Retrying(
        retry=retry_if_exception_type(Unreachable),
        wait=wait_random_exponential(multiplier=_FIRST_PAUSE, max=_LONGEST_PAUSE),
        stop=stop_after_delay(seconds),
        before_sleep=say,
        reraise=True,
    )
    return retrying(connect)
