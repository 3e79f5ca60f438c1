"""The rate of a replay: events a second, a quarter of a second's at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

#: Pages a second.
_PAGES = 4


class Pace:
    """Tells how many events may follow, and when; ``rate`` in events a second, 0 for no limit.

    In any one second there are at most so many, and one page: what was late is made up for by one
    page and no more, however long it was (a *leaky bucket* that holds one page).
    """

    def __init__(self, rate: float, clock: Callable[[], float]) -> None:
        self._rate = rate
        self._clock = clock
        #: Until when nothing more may be sent.
        self._free_at = 0.0

    def page(self, most: int) -> int:
        """Return how many events may be sent at a time, of ``most``: one at least."""
        if not self._rate:
            return most
        return max(1, min(most, int(self._rate / _PAGES)))

    def left(self) -> float:
        """Return the seconds until the next page; not above zero where it may be sent."""
        return self._free_at - self._clock()

    def note(self, events: int) -> None:
        """Count a page that was sent."""
        if self._rate:
            seconds = events / self._rate
            self._free_at = max(self._free_at, self._clock() - seconds) + seconds
