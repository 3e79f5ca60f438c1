"""From the URL of a lease store to an open one."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from worker.errors import ConfigurationError, LeasesUnavailable
from worker.leases.base import LeaseOptions, LeaseStore
from worker.leases.memory import MemoryLeases
from worker.leases.sole import SoleLease
from worker.leases.sqlite import SqliteLeases
from worker.patience import patiently
from worker.stores.catalog import Catalog, Later

if TYPE_CHECKING:
    from worker.config import Settings

_REDIS = Later("worker.leases.redis", "RedisLeases")
_POSTGRES = Later("worker.leases.postgres", "PostgresLeases", "postgres")
#: Other distributions register the class of their store here, under its URL scheme.
ENTRY_POINTS = "qworker.leases"

_CATALOG: Catalog[LeaseStore] = Catalog(
    "lease",
    LeaseStore,
    {
        "memory": MemoryLeases,
        "sqlite": SqliteLeases,
        "redis": _REDIS,
        "rediss": _REDIS,
        "unix": _REDIS,
        "postgresql": _POSTGRES,
        "postgres": _POSTGRES,
    },
    ENTRY_POINTS,
    ("reach",),
)


def open_leases(url: str, options: LeaseOptions, origin: str = "") -> LeaseStore:
    """Open the store that ``url`` names, as :meth:`Catalog.open` tells.

    Raises ConfigurationError where the text is wrong or the class is no store, and
    LeasesUnavailable where the store is not there now; both end with ``origin``, which tells
    somebody who did not say this URL where it comes from.
    """
    try:
        return _CATALOG.open(url, options)
    except (ConfigurationError, LeasesUnavailable) as error:
        if not origin:
            raise
        raise type(error)(f"{str(error).rstrip('.')}; {origin}") from None


def known_services(store: LeaseStore) -> list[str]:
    """Return the services that ``store`` knows; none, where it cannot tell.

    It is for hints alone, so a store of others need not have this method.
    """
    services = getattr(store, "services", None)
    return services() if callable(services) else []


def sole_lease(service: str, name: str, settings: Settings) -> SoleLease:
    """Return the lease ``name`` of a service, in the store of its settings."""
    options = LeaseOptions(settings.lease_ttl, settings.dedup_timeout)
    where = partial(open_leases, settings.leases_url, options, settings.leases_origin)
    # The leases of shards are kept under the service's name, which has no colon in it.
    return SoleLease(
        lambda: patiently(where, settings.connect_timeout),
        f"{service}:{name}",
        name,
        settings.lease_ttl,
    )
