"""Celery, acknowledging after the handler, with a prefetch that keeps it fed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from celery import Celery
from celery.exceptions import Reject

from speed.apps.work import WORK, note, work_once
from speed.load import REJECTING, RETRYING, fails

if TYPE_CHECKING:
    from speed.stream import Stream

app = Celery("speed", broker=os.environ["BROKER_URL"])
app.conf.update(
    task_acks_late=True,
    # 4 by default, with which it is slower.
    worker_prefetch_multiplier=64,
    task_ignore_result=True,
    broker_connection_retry_on_startup=True,
)


@app.task(name="tick", bind=True, max_retries=3)
def tick(self, ident: str, key: str, number: int, padding: str) -> None:  # type: ignore[no-untyped-def] # noqa: ANN001, ARG001 - Celery makes the class of self at run time; the rest is only counted
    """Work."""
    if WORK == REJECTING:
        note(number)
        raise Reject(reason="no", requeue=False)
    if WORK == RETRYING and fails(number) and not self.request.retries:
        raise self.retry(countdown=0)
    work_once(ident, number)


def publish_all(stream: Stream) -> None:
    """Publish without confirms, which is its default."""
    for message in stream:
        tick.delay(*message)
    app.close()
