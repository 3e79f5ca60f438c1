"""Dramatiq, with confirms, and its own retries with shorter waits."""

from __future__ import annotations

import os

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker

from peers.apps.booking import book_once

broker = RabbitmqBroker(url=os.environ["BROKER_URL"], confirm_delivery=True)
dramatiq.set_broker(broker)


# By default 20 retries, the first after 15 s: longer than the benchmark waits in the end.
@dramatiq.actor(max_retries=None, min_backoff=500, max_backoff=5_000)
def book(ident: str, key: str, sequence: int) -> None:
    """Book once."""
    book_once(ident, key, sequence)


def publish(ident: str, key: str, sequence: int) -> None:
    """Return when the broker has confirmed it."""
    book.send(ident, key, sequence)
