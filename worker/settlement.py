"""Which delivery tags to acknowledge: contiguous, in as few frames as possible. Pure.

A broker numbers the deliveries of a channel 1, 2, 3, …; ``ack(tag, multiple=True)`` settles all
up to and including ``tag``. So what is finished up to the first gap goes out in one frame. A
message that is held for long (a retry) would let everything behind it pile up and use the
prefetch; once too much has piled up (``slack``), what is finished beyond the gap is acknowledged
one by one.

Invariant: a tag is acknowledged at most once and only after ``finish``; a multiple-ack names a tag
that is itself not yet acknowledged (brokers answer PRECONDITION_FAILED otherwise).
"""

from __future__ import annotations

from typing import NamedTuple


class Acks(NamedTuple):
    """What to send now: ``upto`` with multiple=True where not None, then each of ``singles``."""

    upto: int | None
    singles: list[int]


class Settlement:
    """The delivery tags of one channel."""

    __slots__ = ("_acked", "_finished", "_highest", "_upto")

    def __init__(self) -> None:
        self._upto = 0  # all tags up to here are acknowledged
        self._highest = 0  # highest tag delivered
        self._finished: set[int] = set()  # finished, not acknowledged
        self._acked: set[int] = set()  # acknowledged one by one, above _upto

    def deliver(self, tag: int) -> None:
        """Note a delivery. Tags of a channel come in order, each once."""
        self._highest = tag

    def finish(self, tag: int) -> None:
        """Say that ``tag`` needs nothing any more but its ack."""
        self._finished.add(tag)

    def take(self, slack: int = 0) -> Acks:
        """Return what can be acknowledged now and count it as sent.

        What lies behind a gap is left as long as it is no more than ``slack`` tags.
        """
        finished, acked = self._finished, self._acked
        tag, last = self._upto + 1, None
        while True:
            if tag in finished:
                finished.remove(tag)
                last = tag
            elif tag in acked:
                acked.remove(tag)
            else:
                break
            tag += 1
        self._upto = tag - 1
        if len(finished) > slack:
            singles = sorted(finished)
            acked.update(singles)
            finished.clear()
        else:
            singles = []
        return Acks(last, singles)

    def left_before(self, tag: int) -> int:
        """Return how many deliveries before ``tag`` are not finished."""
        done = sum(each < tag for tags in (self._finished, self._acked) for each in tags)
        return max(0, tag - 1 - self._upto - done)

    @property
    def upto(self) -> int:
        """The tag up to which all are acknowledged."""
        return self._upto

    @property
    def highest(self) -> int:
        """The highest tag that was delivered; 0 before the first."""
        return self._highest

    @property
    def oldest(self) -> int | None:
        """The lowest tag that is not acknowledged; None where all are."""
        return self._upto + 1 if self.unsettled else None

    @property
    def unsettled(self) -> int:
        """How many deliveries are not acknowledged."""
        return self._highest - self._upto - len(self._acked)

    @property
    def finished(self) -> int:
        """How many finished tags wait for their ack."""
        return len(self._finished)
