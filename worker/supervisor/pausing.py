"""What is paused, carried out by one supervisor.

Paused shards are dealt to no process: the one that has such a shard gives it, and its lease stays.
Paused handlers are told to every process. Both are *carried out* when nothing of them runs here any
more; the other members, and ``qworker pause``, get to know up to which version of the document.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from worker.sharding.pauses import PAUSED, Pauses
from worker.supervisor.control import Pause

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.leases.base import View
    from worker.supervisor.fleet import Fleet

logger = logging.getLogger("worker.supervisor")


class Pausing:
    """Follows the document of one service. Used by the supervisor's loop."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._version = 0
        self._carried_out = 0
        #: What is paused, as far as is known.
        self.pauses = Pauses()
        fleet.dealer.paused = self._is_paused

    def hear(self, view: View, write: Callable[[str, int, str], None]) -> None:
        """Follow what the lease store knows now. Raises StoreCorrupt.

        A store that forgot what was paused is told again, by ``write``.
        """
        document = view.documents.get(PAUSED)
        if document is None:
            if self.pauses:
                write(PAUSED, 0, self.pauses.dump())
            return
        if document.version == self._version:
            return
        pauses = Pauses.load(document.text)
        if pauses != self.pauses:
            logger.info("paused: %s", pauses)
        self.pauses, self._version = pauses, document.version
        self._fleet.pause(Pause(pauses.handlers, document.version))

    def carried_out(self) -> int:
        """Return the last version of the document that holds here, in all that runs."""
        children = self._fleet.children()
        told = all(child.paused == self._version for child in children if child.ready_at)
        given = not any(
            self.pauses.covers(child.generation, shard)
            for child in children
            for shard in child.shards
        )
        if told and given:
            self._carried_out = self._version
        return self._carried_out

    def left(self, waiting: int) -> str:
        """Return what a burst leaves undone because it is paused; empty where nothing.

        ``waiting`` is how many tasks wait for paused handlers. Of a paused shard nothing is known.
        """
        generation = self._fleet.dealer.generation
        pauses = self.pauses.of(generation.number if generation else 0)
        shards = Pauses(pauses.service, pauses.generation, pauses.shards)
        told = [f"{shards} is paused"] if shards else []
        if waiting:
            told.append(f"{waiting} executions wait for {Pauses(handlers=pauses.handlers)}")
        return ", and ".join(told)

    def _is_paused(self, shard: int) -> bool:
        generation = self._fleet.dealer.generation
        return generation is not None and self.pauses.covers(generation.number, shard)
