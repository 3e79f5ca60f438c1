"""What the supervisors of unit tests are started with."""

from __future__ import annotations

from worker.supervisor.control import Terms

TERMS = Terms(
    service="bank",
    queues="bank",
    shards=4,
    processes=1,
    most_processes=4,
    drain_timeout=10.0,
    watchdog=5.0,
    connect_timeout=5.0,
)
