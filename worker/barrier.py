"""A message whose turn comes when everything in front of it in its queue is settled.

Whoever sends one, and hears of its handler, knows that all is handled, or set aside, that the queue
had before. That the lanes of keys run side by side does not matter: a barrier is held back until
the delivery in front of it is acknowledged, and all before that.

In a relay queue it waits likewise, until all before it is confirmed by the shards of its keys; then
it is passed on to the shard of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from worker.ids import new_id
from worker.message import BARRIER_HEADER
from worker.payload import to_json

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from worker.codec import Codec
    from worker.message import Outgoing
    from worker.task import Delivery, Task

#: The name of a barrier; its header has what its handler is to know it by.
BARRIER = "qw.barrier"


@dataclass(frozen=True, slots=True)
class Barrier:
    """A delivery that turned out to be a barrier; its tasks, where it is not to be passed on."""

    tasks: list[Task]


def barrier(codec: Codec, tells: str, queue: str) -> Outgoing:
    """Return a barrier for one queue."""
    message_id = new_id()
    message = codec.pack(
        BARRIER, to_json({}), message_id=message_id, headers={BARRIER_HEADER: tells}
    )
    message.exchange, message.routing_key, message.mandatory = "", queue, True
    return message


def is_barrier(properties: Mapping[str, Any], exchange: str) -> bool:
    """Tell whether a message with these properties, which came by ``exchange``, is a barrier.

    One that came by any other exchange than a queue's own is somebody's event of that name.
    """
    return not exchange and properties.get("type") == BARRIER and bool(told_by(properties))


def told_by(properties: Mapping[str, Any]) -> str:
    """Return what a barrier with these properties is known by; empty where it is none."""
    headers = properties.get("application_headers")
    told = headers.get(BARRIER_HEADER) if isinstance(headers, dict) else None
    return told if isinstance(told, str) else ""


class Barriers:
    """The barriers that wait in one consumer. I/O thread only."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Delivery, Barrier]] = []

    def add(self, delivery: Delivery, found: Barrier) -> None:
        """Hold a barrier back."""
        self._waiting.append((delivery, found))

    def due(self) -> list[tuple[Delivery, Barrier]]:
        """Return those whose turn has come, and hold them no longer."""
        if not self._waiting:
            return []
        due = [each for each in self._waiting if _has_its_turn(each[0])]
        self._waiting = [each for each in self._waiting if each not in due]
        return due

    def clear(self) -> None:
        """Forget all: what was delivered comes again."""
        self._waiting = []

    def drop(self, shards: Collection[int]) -> None:
        """Forget those of these shards."""
        self._waiting = [each for each in self._waiting if each[0].channel.shard not in shards]


def _has_its_turn(delivery: Delivery) -> bool:
    upto: int = delivery.channel.settlement.upto
    return upto >= delivery.tag - 1
