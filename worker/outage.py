"""Tells an outage from poison: when everything fails at once, the messages are not to blame. Pure.

A circuit breaker a handler (after Nygard, *Release It!*, "Circuit Breaker"): once ``threshold``
different messages failed in a row with no success between them, it opens, and the first success
closes it. While it is open:

* The handler gets one probe at a time, at growing intervals.
* Attempts count, but a last one does not: it is given back, so that no message is given up. (Would
  none count, then a handler that fails at each message's first attempts never got past them.)
* The probe is the message that has come furthest, until it has failed at its last attempt; then
  the next one. Where all have, they take turns.
* It needs evidence. Where fewer messages than the threshold are left, and each of them (but those
  that wait behind another of their key) has failed at its last attempt, they are poison: the retry
  policy decides about the next probe that fails. When the last one is gone the breaker closes; it
  opens again at the next failure, for nothing has succeeded yet.

What a handler asks for (``raise Retry``) is neither a failure nor a success.
"""

from __future__ import annotations

_FIRST_PROBE = 0.5
_LONGEST_PROBE = 30.0


class Breaker:
    """The breaker of one handler. Times are monotonic seconds, given by the caller."""

    __slots__ = (
        "_failed",
        "_interval",
        "_left",
        "_threshold",
        "next_probe",
        "only_poison",
        "opened_at",
    )

    def __init__(self, threshold: int) -> None:
        self._threshold = threshold
        self._failed: set[bytes] = set()
        self._interval = _FIRST_PROBE
        self._left = 0
        #: When it opened; None while it is closed.
        self.opened_at: float | None = None
        self.next_probe = 0.0
        #: What is left is too little for an outage, and was tried to the end.
        self.only_poison = False

    @property
    def is_open(self) -> bool:
        """Whether the handler gets probes only."""
        return self.opened_at is not None

    @property
    def failures(self) -> int:
        """How many different messages failed since the last success, until it opened."""
        return len(self._failed)

    def succeed(self) -> bool:
        """Count a success; tell whether it ended an outage."""
        if not self._failed:
            return False
        was_open = self.is_open
        self._failed.clear()
        self._interval = _FIRST_PROBE
        self._close()
        return was_open

    def fail(self, record: bytes, now: float) -> bool:
        """Count a failure of ``record``; tell whether it began an outage."""
        if self.is_open:
            if now >= self.next_probe:  # a probe's, and not of what still ran when it opened
                self._interval = min(self._interval * 2, _LONGEST_PROBE)
                self.next_probe = now + self._interval
            return False
        self._failed.add(record)
        if len(self._failed) < self._threshold:
            return False
        self.opened_at = now
        self.next_probe = now + self._interval
        return True

    def wait(self, now: float) -> None:
        """Put the next probe off: the last one ran, and was neither a failure nor a success."""
        self.next_probe = max(self.next_probe, now + self._interval)

    def judge(self, left: int, *, tried: bool) -> None:
        """Look at the evidence when a probe goes out.

        ``left`` are the messages of the handler that are not done, with the probe; ``tried`` tells
        whether each that can be a probe has failed at its last attempt.
        """
        self._left = left
        self.only_poison = tried and left < self._threshold

    def give_up(self) -> bool:
        """Note that the retry policy decided about a probe; tell whether that ended the outage."""
        self.only_poison = False  # until the next probe
        if self._left > 1:
            return False
        self._close()
        return True

    def _close(self) -> None:
        self.opened_at = None
        self.only_poison = False
