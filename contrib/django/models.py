"""The tables, as ``migrate`` makes them and as a project may look at them.

Nothing here writes by these models: an insert has to tell whether it inserted, and rows of the
outbox have the number of their transaction, which only the database knows.
"""

from __future__ import annotations

from typing import ClassVar

from django.db import models
from worker.contrib.django.columns import PlainField
from worker.contrib.identity import LENGTH


class InboxEntry(models.Model):
    """A handler and an id whose effect is committed."""

    handler = PlainField()
    message_id = PlainField()
    #: Seconds since the epoch.
    at = models.FloatField()

    class Meta:
        """Its table."""

        db_table = "qworker_inbox"
        verbose_name_plural = "inbox entries"
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["handler", "message_id"], name="qworker_inbox_once")
        ]
        indexes: ClassVar = [models.Index(fields=["at"], name="qworker_inbox_at")]

    def __str__(self) -> str:
        return f"{self.handler} {self.message_id}"


class OutboxEntry(models.Model):
    """A message that the broker has not confirmed yet."""

    # The first column (``contrib/outbox/postgres.py`` says why).
    transaction_id = models.BigIntegerField(null=True)
    sequence = models.BigAutoField(primary_key=True)
    service = PlainField()
    #: What orders it: its key, or else its id.
    lane = PlainField()
    message_id = PlainField()
    name = models.CharField(max_length=LENGTH)
    exchange = models.CharField(max_length=LENGTH)
    routing_key = models.CharField(max_length=LENGTH)
    #: Nobody to receive it is an error.
    mandatory = models.BooleanField()
    #: AMQP basic properties, and headers, as JSON.
    properties = models.TextField()
    headers = models.TextField()
    body = models.BinaryField()
    #: Seconds since the epoch.
    at = models.FloatField()

    class Meta:
        """Its table."""

        db_table = "qworker_outbox"
        verbose_name_plural = "outbox entries"
        indexes: ClassVar = [
            models.Index(fields=["service", "lane", "sequence"], name="qworker_outbox_lane")
        ]

    def __str__(self) -> str:
        return f"{self.sequence} {self.name}"
