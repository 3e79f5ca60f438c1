"""Tells an outage from poison: when everything fails at once, the messages are not to blame. Pure.

A circuit breaker a handler (after Nygard, *Release It!*, "Circuit Breaker"): once ``threshold``
different messages failed in a row with no success between them, it opens. While it is open the
handler gets one probe at a time, at growing intervals, and failures cost no attempt; the first
success closes it.
"""

from __future__ import annotations

_FIRST_PROBE = 0.5
_LONGEST_PROBE = 30.0


class Breaker:
    """The breaker of one handler. Times are monotonic seconds, given by the caller."""

    __slots__ = ("_failed", "_interval", "_threshold", "next_probe", "opened_at", "probing")

    def __init__(self, threshold: int) -> None:
        self._threshold = threshold
        self._failed: set[bytes] = set()
        self._interval = _FIRST_PROBE
        #: When it opened; None while it is closed.
        self.opened_at: float | None = None
        self.next_probe = 0.0
        #: A probe is out.
        self.probing = False

    @property
    def is_open(self) -> bool:
        """Whether the handler gets probes only."""
        return self.opened_at is not None

    @property
    def failures(self) -> int:
        """How many different messages failed since the last success."""
        return len(self._failed)

    def succeed(self) -> bool:
        """Count a success; tell whether it ended an outage."""
        if not self._failed:
            return False
        self._failed.clear()
        was_open = self.is_open
        self.opened_at = None
        self.probing = False
        self._interval = _FIRST_PROBE
        return was_open

    def fail(self, record: bytes, now: float) -> bool:
        """Count a failure of ``record``; tell whether it began an outage."""
        self._failed.add(record)
        if self.is_open:
            if self.probing:
                self.probing = False
                self._interval = min(self._interval * 2, _LONGEST_PROBE)
                self.next_probe = now + self._interval
            return False
        if len(self._failed) < self._threshold:
            return False
        self.opened_at = now
        self.next_probe = now + self._interval
        return True
