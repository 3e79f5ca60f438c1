"""Celery, with what its documentation has for tasks that must not get lost."""

from __future__ import annotations

import os

from celery import Celery

from peers.apps.booking import book_once

app = Celery("bookings", broker=os.environ["BROKER_URL"])
app.conf.update(
    # Acknowledged after the handler; given back to the queue where its process died.
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=1,
    # Publisher confirms, for retries too.
    broker_transport_options={"confirm_publish": True},
    # Connects anew for ever, also at the start; 100 times by default.
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    task_ignore_result=True,
)


@app.task(
    # By default a task that raises is acknowledged and gone.
    autoretry_for=(Exception,),
    max_retries=None,
    retry_backoff=1,
    retry_backoff_max=5,
)
def book(ident: str, key: str, sequence: int) -> None:
    """Book once."""
    book_once(ident, key, sequence)


def publish(ident: str, key: str, sequence: int) -> None:
    """Return when the broker has confirmed it."""
    book.delay(ident, key, sequence)
