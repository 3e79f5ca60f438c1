"""Calls that are due later, in the loop's own thread."""

from __future__ import annotations

import heapq
from itertools import count
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Timers:
    """A heap of calls by the time at which they are due. Used by one thread."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._heap: list[tuple[float, int, Callable[[], None], bool]] = []
        self._numbers = count()  # calls that are due at the same time go in order of setting
        self._work = 0

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def has_work(self) -> bool:
        """Whether a call is due later that is more than a look."""
        return self._work > 0

    @property
    def next_due(self) -> float:
        """When the next call is due; infinity where there is none."""
        return self._heap[0][0] if self._heap else float("inf")

    def at(self, due: float, call: Callable[[], None], *, looks: bool = False) -> None:
        """Make ``call`` when the clock shows ``due``.

        One that ``looks`` is no work of its own: who it is for waits elsewhere, where that is
        known, and may be gone by then.
        """
        heapq.heappush(self._heap, (due, next(self._numbers), call, looks))
        self._work += not looks

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        """Make ``call`` in ``seconds``."""
        self.at(self._clock() + seconds, call)

    def run(self, now: float) -> int:
        """Make the calls that are due at ``now``; return how many."""
        number = 0
        while self._heap and self._heap[0][0] <= now:
            _, _, call, looks = heapq.heappop(self._heap)
            self._work -= not looks
            call()
            number += 1
        return number
