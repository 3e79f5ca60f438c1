"""FastStream on RabbitMQ; the handler is a coroutine, the event a pydantic model."""

import asyncio
import os
from typing import TYPE_CHECKING

from faststream import FastStream
from faststream.rabbit import Channel, RabbitBroker, RabbitQueue
from pydantic import BaseModel

from speed.apps.coroutines import work_once

if TYPE_CHECKING:
    from speed.stream import Stream

_CONFIRMS = bool(os.environ.get("SPEED_CONFIRMS"))

broker = RabbitBroker(
    os.environ["BROKER_URL"],
    # Without a prefetch it takes the whole queue into its memory.
    default_channel=Channel(prefetch_count=128, publisher_confirms=_CONFIRMS),
    # By default it writes two lines for each event, whatever the level.
    logger=None,
)
app = FastStream(broker)
ticks = RabbitQueue("ticks", durable=True)


class Tick(BaseModel):
    """The event."""

    ident: str
    key: str
    number: int
    padding: str


@broker.subscriber(ticks)
async def tick(event: Tick) -> None:
    """Work."""
    await work_once(event.ident, event.number)


def publish_all(stream: "Stream") -> None:
    """Publish persistent messages, each awaited."""
    asyncio.run(_publish(stream))


async def _publish(stream: "Stream") -> None:
    await broker.connect()
    await broker.declare_queue(ticks)
    async for ident, key, number, padding in stream:
        event = Tick(ident=ident, key=key, number=number, padding=padding)
        await broker.publish(event, ticks, persist=True)
    await broker.stop()
