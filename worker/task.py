"""What moves through a consumer: a delivery, and its tasks, one for each handler."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worker.handler import Handler
    from worker.message import Message
    from worker.revisions import Progress


class Delivery:
    """One message as one shard's channel delivered it; settled when all its tasks are."""

    __slots__ = ("arrival", "channel", "fingerprint", "message", "open_tasks", "parked", "tag")

    def __init__(self, channel: Any, tag: int, arrival: Any) -> None:
        #: The shard's channel; dead when its connection is.
        self.channel = channel
        self.tag = tag
        #: The message as it came, for setting it aside unchanged.
        self.arrival = arrival
        self.message: Message | None = None
        self.fingerprint = b""
        self.open_tasks = 0
        #: It is on its way to the parked queue.
        self.parked = False


class Task:
    """A message at one handler: the unit of claiming, running and settling."""

    __slots__ = (
        "attempt",
        "busy",
        "delivery",
        "effective",
        "fingerprint",
        "given_up",
        "handler",
        "handler_name",
        "is_async",
        "message",
        "progress",
        "record",
        "spent",
        "started",
        "token",
        "trusted_until",
        "waits",
    )

    def __init__(self, delivery: Delivery, message: Message, handler: Handler) -> None:
        self.delivery = delivery
        self.message = message
        self.handler = handler
        self.handler_name = handler.name
        self.is_async = handler.is_async
        #: What the store remembers of it: its id at the handler, and what tells another payload.
        self.record = handler.record_id(message.id)
        self.fingerprint = delivery.fingerprint
        self.token = b""
        self.attempt = 0
        #: Until when the claim is surely ours: the start of the request that made or renewed it,
        #: plus its life, less a margin; monotonic.
        self.trusted_until = 0.0
        #: When the handler began; 0 while it does not run.
        self.started = 0.0
        #: The handler returned, and it was not set aside after that: whatever the store says from
        #: here on, it must not run again.
        self.effective = False
        #: How often its claim found another owner.
        self.busy = 0
        #: It is counted as one of its channel that waits for a retry or a revision.
        self.waits = False
        #: What it knows of its revision, where its handler judges by that.
        self.progress: Progress | None = None
        #: It failed at its last attempt in an outage, which gave that attempt back.
        self.spent = False
        #: Why its key is parked, where it is the one that could not be handled.
        self.given_up = ""
