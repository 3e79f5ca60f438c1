"""Asks a dedup store as a worker does: while that is away, again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from worker.errors import DedupUnavailable

T = TypeVar("T")
_PATIENCE = 20.0


def insist(ask: Callable[[], T]) -> T:
    """Return what is answered; a busy machine may need more time than the store is given."""
    give_up = time.monotonic() + _PATIENCE
    while True:
        try:
            return ask()
        except DedupUnavailable:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.05)
