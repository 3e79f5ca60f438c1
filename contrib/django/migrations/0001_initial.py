"""The tables of the inbox and the outbox."""

from __future__ import annotations

from typing import ClassVar

from django.db import migrations, models
from worker.contrib.django.columns import PlainField


class Migration(migrations.Migration):
    """Makes both tables."""

    initial = True
    dependencies: ClassVar[list[tuple[str, str]]] = []
    operations: ClassVar = [
        migrations.CreateModel(
            name="InboxEntry",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("handler", PlainField()),
                ("message_id", PlainField()),
                ("at", models.FloatField()),
            ],
            options={
                "db_table": "qworker_inbox",
                "verbose_name_plural": "inbox entries",
                "constraints": [
                    models.UniqueConstraint(
                        fields=["handler", "message_id"], name="qworker_inbox_once"
                    )
                ],
                "indexes": [models.Index(fields=["at"], name="qworker_inbox_at")],
            },
        ),
        migrations.CreateModel(
            name="OutboxEntry",
            fields=[
                ("transaction_id", models.BigIntegerField(null=True)),
                ("sequence", models.BigAutoField(primary_key=True, serialize=False)),
                ("service", PlainField()),
                ("lane", PlainField()),
                ("message_id", PlainField()),
                ("name", models.CharField(max_length=255)),
                ("exchange", models.CharField(max_length=255)),
                ("routing_key", models.CharField(max_length=255)),
                ("mandatory", models.BooleanField()),
                ("properties", models.TextField()),
                ("headers", models.TextField()),
                ("body", models.BinaryField()),
                ("at", models.FloatField()),
            ],
            options={
                "db_table": "qworker_outbox",
                "verbose_name_plural": "outbox entries",
                "indexes": [
                    models.Index(fields=["service", "lane", "sequence"], name="qworker_outbox_lane")
                ],
            },
        ),
    ]
