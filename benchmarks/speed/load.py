"""What is published, and what handlers do with it.

A load goes to all processes as JSON in ``SPEED_LOAD``, and is the same for everyone. Workers import
this file, whose memory is measured: the rest of what publishers need is in ``stream``.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

#: What handlers can do beside counting.
NOTHING, SLEEPING, COMPUTING = "nothing", "sleeping", "computing"
ASYNCHRONOUS, REJECTING, RETRYING = "asynchronous", "rejecting", "retrying"


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Many events."""

    events: int = 20_000
    keys: int = 1_000
    #: Exponent of Zipf's law: 0 gives all keys as often as each other.
    skew: float = 0.0
    #: Bytes of a body; with all of an event in it, JSON and without spaces.
    body: int = 120
    #: Whether the key orders; no peer knows order.
    ordered: bool = True
    #: What a handler does.
    work: str = NOTHING
    #: Events a second, 0 for as fast as it goes.
    rate: float = 0.0
    #: Wait for the confirm of each, where the publisher can do both.
    one_by_one: bool = False
    #: Ids say nothing of when they were made, as UUIDs of version 4 do. Otherwise an event that
    #: makes its own makes it as it does.
    random_ids: bool = False
    seed: int = 1

    def dump(self) -> str:
        """Return it as text."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: str) -> Load:
        """Return what ``dump`` wrote."""
        return cls(**json.loads(text))


def fails(number: int) -> bool:
    """Tell whether an event fails at first: half of them do, and of each key some."""
    return number // 3 % 2 == 1
