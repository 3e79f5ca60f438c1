"""taskiq over aio-pika; its handlers are coroutines. Parsing by pydantic is its default."""

import asyncio
import os
from typing import TYPE_CHECKING

from taskiq_aio_pika import AioPikaBroker

from speed.apps.coroutines import work_once

if TYPE_CHECKING:
    from speed.stream import Stream

# 10 by default, with which it is slower.
broker = AioPikaBroker(os.environ["BROKER_URL"], qos=128)


@broker.task(task_name="tick")
async def tick(ident: str, key: str, number: int, padding: str) -> None:  # noqa: ARG001 - each event brings all of these, and is only counted
    """Work."""
    await work_once(ident, number)


def publish_all(stream: "Stream") -> None:
    """Publish as its users do: each awaited. aio-pika's channels confirm by default."""
    asyncio.run(_publish(stream))


async def _publish(stream: "Stream") -> None:
    await broker.startup()
    async for message in stream:
        await tick.kiq(*message)
    await broker.shutdown()
