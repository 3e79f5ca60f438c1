"""From what ``--dedup`` says to an open store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from worker.config import mask_url
from worker.dedup.base import DedupStore, StoreOptions
from worker.dedup.memory import MemoryStore
from worker.dedup.sqlite import SqliteStore
from worker.errors import ConfigurationError, DedupUnavailable
from worker.stores.catalog import Catalog, Later

if TYPE_CHECKING:
    from worker.config import Settings

_REDIS = Later("worker.dedup.redis", "RedisStore")
_POSTGRES = Later("worker.dedup.postgres", "PostgresStore", "postgres")
#: Other distributions register the class of their store here, under its URL scheme.
ENTRY_POINTS = "qworker.dedup"

_CATALOG: Catalog[DedupStore] = Catalog(
    "dedup",
    DedupStore,
    {
        "memory": MemoryStore,
        "sqlite": SqliteStore,
        "redis": _REDIS,
        "rediss": _REDIS,
        "unix": _REDIS,
        "postgresql": _POSTGRES,
        "postgres": _POSTGRES,
    },
    ENTRY_POINTS,
    ("tier", "shared"),
)


def open_settled(settings: Settings) -> DedupStore:
    """Open the store that the settings name, as they say. Raises as :func:`open_store` does."""
    options = StoreOptions(
        settings.claim_ttl, settings.retention, settings.dedup_timeout, settings.revision_retention
    )
    try:
        return open_store(settings.dedup_url, options)
    except (ConfigurationError, DedupUnavailable) as error:
        if settings.dedup:
            raise
        hint = f"--dedup is not set, and this goes with --broker {mask_url(settings.broker)}"
        raise type(error)(f"{str(error).rstrip('.')}; {hint}") from None


def open_store(url: str, options: StoreOptions) -> DedupStore:
    """Open the store that ``url`` names, as :meth:`Catalog.open` tells.

    Raises ConfigurationError where the text is wrong or the class is no store, and
    DedupUnavailable where the store is not there now.
    """
    return _CATALOG.open(url, options)
