"""Waiting for a condition instead of sleeping: the only clock that a test may look at."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_FIRST_PAUSE = 0.005
_LONGEST_PAUSE = 0.1


def until(condition: Callable[[], T], timeout: float = 10.0, message: str = "") -> T:
    """Return what ``condition`` answers as soon as that is true.

    Fails with ``message`` and the last answer when ``timeout`` seconds have passed. What the
    condition raises is not caught: a condition that may raise says so itself.
    """
    deadline = time.monotonic() + timeout
    pause = _FIRST_PAUSE
    while not (answer := condition()):
        if time.monotonic() >= deadline:
            what = message or getattr(condition, "__qualname__", "the condition")
            raise AssertionError(f"not within {timeout:g} s: {what} (last answer: {answer!r})")
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)
    return answer
