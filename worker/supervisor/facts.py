"""What a supervisor tells the other members of its service, and ``qworker status``."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True, slots=True)
class Facts:
    """One member of a service. Everything has a default, for members of other releases."""

    host: str = ""
    pid: int = 0
    #: As in :class:`~worker.supervisor.status.Status`.
    state: str = ""
    #: Whether shards may be assigned to it.
    able: bool = True
    #: What it waits for; empty where for nothing.
    waits: str = ""
    #: The version of the plan that all its processes follow; and the leases of the shards of the
    #: old generation that are drained.
    followed: int = 0
    drained: Sequence[str] = ()
    #: How long its leases live without renewal: so long it may be silent and go on.
    lease_ttl: float = 10.0
    #: When it told this, by its own clock, in seconds since 1970.
    at: float = 0.0
    #: The version of the document on what is paused that it has carried out.
    paused: int = 0
    processes: Sequence[Mapping[str, Any]] = ()
    #: The handlers of events that its processes have, with the names or patterns that they observe.
    handlers: Mapping[str, str] = field(default_factory=dict)
    #: The handlers with an outage, each with the number of its processes that see it.
    outages: Mapping[str, int] = field(default_factory=dict)
    #: By the lease of each shard that a process of it consumes: what is known of the shard, as
    #: :class:`~worker.telemetry.ShardGauges` are told, and ``pid``.
    shards: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def dump(self) -> str:
        """Return the facts as text."""
        told = {name: getattr(self, name) for name in Facts.__slots__}  # asdict copies it all
        return json.dumps(told, separators=(",", ":"), default=str)

    @classmethod
    def load(cls, text: str) -> Facts:
        """Read what ``dump`` wrote, as far as it is understood. Never raises."""
        try:
            told = json.loads(text)
            return cls(**{name: told[name] for name in cls.__slots__ if name in told})
        except (ValueError, TypeError):
            return cls()
