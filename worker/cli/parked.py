"""The parked keys of a service, for commands that mention them."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from worker.cli.output import clean, count, note
from worker.config import mask_url
from worker.dedup.open import open_settled
from worker.errors import ConfigurationError, DedupUnavailable
from worker.inspector import Inspector
from worker.parking import parked_keys
from worker.stores.sqlite import path_of
from worker.topology import parked_queue

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from worker.cli.loading import Target
    from worker.dedup.base import DedupStore


class ParkedKeys:
    """The parked keys of a service. A dedup store that is away hides nothing else."""

    def __init__(self, place: Target) -> None:
        self._place = place
        self._store: DedupStore | None = None
        #: Why they are not known.
        self.problem = ""

    def look(self) -> Mapping[str, int] | None:
        """Return them with the number at which each was parked last; None if not known."""
        url = self._place.settings.dedup_url
        if url.startswith("memory:"):
            self.problem = f"{url} is the memory of another process"
            return None
        self.problem = ""
        if self._store is None and url.startswith("sqlite:") and not path_of(url, "dedup").exists():
            return {}  # looking must not create it
        try:
            if self._store is None:
                self._store = open_settled(self._place.settings)
            return parked_keys(self._store, self._place.service)
        except (DedupUnavailable, ConfigurationError) as error:  # a class that is not here, say
            self.problem = mask_url(str(error))
            return None

    def close(self) -> None:
        """Let go of the connection."""
        if self._store is not None:
            self._store.close()


def how_to_return(keys: Collection[str]) -> str:
    """Return how the messages of a parked key, one of these, are sent back."""
    key = shlex.quote(clean(next(iter(keys)))) if len(keys) == 1 else "KEY"
    return f"dlq replay --key {key} sends its messages back, in order"


def tell_parked(place: Target) -> None:
    """Say on standard error what is parked, where something is. Raises BrokerUnreachable."""
    with Inspector(place.service, place.settings) as inspector:
        depth = inspector.depth(parked_queue(place.service))
    held = 0 if depth is None else depth.ready
    store = ParkedKeys(place)
    try:
        keys = store.look()
    finally:
        store.close()
    if held or keys:
        of_keys = f" of {count(len(keys), 'key')}" if keys else ""
        note(f"{count(held, 'parked message')}{of_keys}: dlq list --parked")
