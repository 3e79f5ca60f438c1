"""Dramatiq, with its defaults."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.middleware import AsyncIO, CurrentMessage

from speed.apps.work import WORK, note, work_once
from speed.load import ASYNCHRONOUS, REJECTING, RETRYING, fails

if TYPE_CHECKING:
    from speed.stream import Stream

_CONFIRMS = bool(os.environ.get("SPEED_CONFIRMS"))
broker = RabbitmqBroker(url=os.environ["BROKER_URL"], confirm_delivery=_CONFIRMS)
dramatiq.set_broker(broker)
_options: dict[str, Any] = {"max_retries": 0 if WORK == REJECTING else 3, "min_backoff": 1}

if WORK == ASYNCHRONOUS:
    from speed.apps import coroutines

    broker.add_middleware(AsyncIO())

    @dramatiq.actor(**_options)
    async def tick(ident: str, key: str, number: int, padding: str) -> None:  # noqa: ARG001 - each event brings all of these, and is only counted
        """Work in the event loop."""
        await coroutines.work_once(ident, number)
else:
    if WORK == RETRYING:
        broker.add_middleware(CurrentMessage())

    @dramatiq.actor(**_options)
    def tick(ident: str, key: str, number: int, padding: str) -> None:  # noqa: ARG001 - each event brings all of these, and is only counted
        """Work."""
        if WORK == REJECTING:
            note(number)
            raise RuntimeError("no")
        if WORK == RETRYING and fails(number) and not _attempts():
            raise RuntimeError("not yet")
        work_once(ident, number)


def _attempts() -> int:
    message = CurrentMessage.get_current_message()
    return int(message.options.get("retries", 0)) if message else 0


def publish_all(stream: Stream) -> None:
    """Publish; without confirms by default."""
    for message in stream:
        tick.send(*message)
    broker.close()
