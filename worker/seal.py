"""The marker behind the last message of a queue whose generation ends.

It is published by whoever leads the change of the number of shards, after the old generation's
exchange is gone: to the relay queue where there is one, whose consumer passes it on to every shard
behind all that came before, else to each shard. What is consumed behind it does not count: it
stays unacknowledged, as the marker itself, and goes to the next generation with all that is left.
A marker more does no harm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from worker.ids import new_id
from worker.message import GENERATION_HEADER
from worker.payload import to_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from worker.codec import Codec
    from worker.message import Outgoing

#: The name of the marker.
SEAL = "qw.seal"


@dataclass(frozen=True, slots=True)
class Sealed:
    """A delivery that turned out to be a marker."""


def marker(codec: Codec, generation: int, queue: str) -> Outgoing:
    """Return a marker for one queue of ``generation``."""
    facts = {GENERATION_HEADER: generation}
    message = codec.pack(SEAL, to_json(facts), message_id=new_id(), key=SEAL, headers=facts)
    message.exchange, message.routing_key, message.mandatory = "", queue, True
    return message


def is_marker(properties: Mapping[str, Any], exchange: str) -> bool:
    """Tell whether a message with these properties, which came by ``exchange``, is a marker.

    One that came by any other exchange than a queue's own is somebody's event of that name. The
    runtime wrote it, so it says where the runtime looks, wherever publishers say what.
    """
    if exchange or properties.get("type") != SEAL:
        return False
    headers = properties.get("application_headers")
    return isinstance(headers, dict) and isinstance(headers.get(GENERATION_HEADER), int)
