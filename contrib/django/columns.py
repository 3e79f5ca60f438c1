"""A column for ``plain`` text, which every database compares by its bytes."""

from __future__ import annotations

from typing import Any

from django.db import models
from worker.contrib.identity import LENGTH


class PlainField(models.CharField):
    """Visible ASCII, as ``worker.contrib.identity.plain`` returns it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"max_length": LENGTH, **options})

    def db_type(self, connection: Any) -> str | None:
        """Return the type; MySQL's collations take "a" for "A" unless they are told not to."""
        kind: str | None = super().db_type(connection)
        if connection.vendor == "mysql":
            return f"{kind} CHARACTER SET ascii COLLATE ascii_bin"
        return kind
