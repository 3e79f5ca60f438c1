"""A clock that stands still until a test moves it."""

from __future__ import annotations


class FakeClock:
    """Monotonic seconds that pass only when ``advance`` is called.

    It is a callable like ``time.monotonic``, so it serves wherever the runtime or a dedup store
    takes a clock::

        clock = FakeClock()
        store = MemoryStore(StoreOptions(claim_ttl=10.0), clock)
        store.apply(Batch(claims=[claim]))
        clock.advance(11.0)  # the claim has expired
    """

    #: pytest must not take it for a group of tests.
    __test__ = False

    def __init__(self, start: float = 1_000_000.0) -> None:
        self._now = float(start)

    def __call__(self) -> float:
        """Return the seconds that the clock shows."""
        return self._now

    def __repr__(self) -> str:
        return f"FakeClock({self._now!r})"

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass. Raises ValueError for fewer than none: it never goes back."""
        if not 0 <= seconds < float("inf"):
            raise ValueError(f"FakeClock.advance({seconds!r}): seconds, zero or more")
        self._now += seconds

    def advance_to(self, moment: float) -> None:
        """Let time pass until ``moment``; does nothing where that is past."""
        self.advance(max(0.0, moment - self._now))
