"""For the tests of users: their app on a broker in memory, a clock that obeys, and proofs."""

from worker.testing.clock import FakeClock
from worker.testing.middleware import duplicate_everything

__all__ = ["FakeClock", "duplicate_everything"]
