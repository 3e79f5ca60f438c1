"""FastStream, with confirms, and redelivery where a handler fails."""

import asyncio
import os

from faststream import AckPolicy, FastStream
from faststream.rabbit import Channel, RabbitBroker, RabbitQueue
from pydantic import BaseModel

from peers.apps.booking import book_once

broker = RabbitBroker(
    os.environ["BROKER_URL"],
    # Eight handlers at once in a process; confirms are on by default, as is connecting anew.
    default_channel=Channel(prefetch_count=8, on_return_raises=True),
    reconnect_interval=1,
    # At the end, wait for the handlers that run.
    graceful_timeout=25,
)
app = FastStream(broker)
bookings = RabbitQueue("bookings", durable=True)


class Booking(BaseModel):
    """What is to be booked."""

    ident: str
    key: str
    sequence: int


# By default a message whose handler raises is rejected, and gone.
@broker.subscriber(bookings, ack_policy=AckPolicy.NACK_ON_ERROR)
def book(booking: Booking) -> None:
    """Book once, in a thread."""
    book_once(booking.ident, booking.key, booking.sequence)


_runner = asyncio.Runner()


def publish(ident: str, key: str, sequence: int) -> None:
    """Return when the broker has confirmed it; for a program that has no event loop."""
    _runner.run(_publish(Booking(ident=ident, key=key, sequence=sequence)))


async def _publish(booking: Booking) -> None:
    await broker.connect()
    async with asyncio.timeout(10):
        await broker.publish(booking, bookings, persist=True)
