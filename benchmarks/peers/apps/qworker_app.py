"""qworker: the id and the key are the event's own, and dedup is a setting."""

import os

from peers.apps.booking import book
from worker import App, Event

app = App(
    "bookings",
    broker=os.environ["BROKER_URL"],
    settings={
        "dedup": os.environ["REDIS_URL"],
        "shards": 8,
        "processes": 2,
        "concurrency": 8,
    },
)


class Booked(Event, name="booked", key="key"):
    """What is to be booked."""

    key: str
    sequence: int


@app.on(Booked)
def book_it(event: Booked) -> None:
    """Book; what was done already does not come here."""
    book(event.event_id, event.key, event.sequence)


def publish(ident: str, key: str, sequence: int) -> None:
    """Return when the broker has confirmed it."""
    app.publish(Booked(event_id=ident, key=key, sequence=sequence))
