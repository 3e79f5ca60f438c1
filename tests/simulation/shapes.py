"""What a world is made of: its machines, its service, and how that is set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from simulation.moments import TTL


@dataclass(frozen=True, slots=True)
class Shape:
    """What a world is made of."""

    members: int = 1
    processes: int = 2
    shards: int = 3
    handlers: int = 1
    #: How many handlers a process runs at once: one of these, for all.
    concurrency: Sequence[int] = (1, 2, 2, 3)
    prefetch: int = 8
    crash_limit: int = 100
    #: Whether one process at a time consumes all of it.
    single_active: bool = False
    #: Whether there is a handler for the children of messages.
    children: bool = False
    #: Whether a message that fails for the last time parks its key.
    parks: bool = False
    #: Whether effects are transactions, with the id in them.
    once: bool = False
    #: Whether the fallible handler has revisions: some posts come too early, or too late.
    revisions: bool = False
    #: How many places farther behind, or before, than they belong some of these are published.
    astray: int = 1
    #: The seconds that a message waits for an earlier revision.
    patience: float = 4.0
    #: 2: one of the first members runs a newer one, which takes messages from one exchange more.
    releases: int = 1
    #: The seconds that leases live.
    lease_ttl: float = TTL
    #: The seconds that handlers take, one of these each.
    durations: Sequence[float] = (0.0, 0.0, 0.0, 0.02, 0.1, 0.3)
