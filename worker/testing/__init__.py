"""For the tests of users: their app on a broker in memory, a clock that obeys, and proofs.

==========================  ====================================================================
``TestWorker(app)``         runs the app, deterministically, in the test's own process and thread
``FakeClock``               the seconds that it waits for a retry pass in no time
``duplicate_everything``    a middleware that runs every handler twice: is it idempotent?
``qworker_worker``          the pytest fixture: makes TestWorkers, and ends them with the test
==========================  ====================================================================

Authors of dedup stores find a conformance suite in ``worker.testing.dedup_suite``, those of lease
stores in ``worker.testing.lease_suite``, those of transports in ``worker.testing.transport_suite``.
Each compares random histories with a model as well.
"""

from worker.testing.clock import FakeClock
from worker.testing.middleware import duplicate_everything
from worker.testing.seen import DeadLetter, Execution, SeenMessage
from worker.testing.test_worker import TestWorker

__all__ = [
    "DeadLetter",
    "Execution",
    "FakeClock",
    "SeenMessage",
    "TestWorker",
    "duplicate_everything",
]
