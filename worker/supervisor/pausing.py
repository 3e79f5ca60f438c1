"""What is paused, carried out by one supervisor.

Paused shards are dealt to no process: the one that has such a shard gives it, and its lease stays.
Paused handlers are told to every process. Both are *carried out* when nothing of them runs here any
more; the other members, and ``qworker pause``, get to know up to which version of the document.

Where the store forgot the document, or went back to an earlier one, versions begin anew: what was
carried out says nothing of those to come. And what is paused here is written again; as with the
plan, a store is not believed against what is known. So nothing that is paused resumes by itself.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from worker.sharding.pauses import PAUSED, Pauses
from worker.supervisor.control import Pause

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

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

    def hear(
        self, paused: tuple[int, Pauses] | None, write: Callable[[str, int, str], None]
    ) -> None:
        """Follow the document, which has this version now.

        A store that forgot what was paused, or tells what was paused before, is told again, by
        ``write``.
        """
        version, pauses = paused or (0, Pauses())
        if (version, pauses) == (self._version, self.pauses):
            return
        if version < self._version and pauses != self.pauses:
            write(PAUSED, version, self.pauses.dump())
            return
        if version <= self._version:
            self._begin_anew()
        if pauses != self.pauses:
            logger.info("paused: %s", pauses)
        self.pauses, self._version = pauses, version
        self._fleet.pause(Pause(pauses.handlers, version))

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

    def _begin_anew(self) -> None:
        """The versions began anew: what was answered up to now was of others."""
        self._carried_out = 0
        for child in self._fleet.children():
            child.paused = 0

    def left_over(self, gauges: Mapping[str, float]) -> str:
        """Return what a burst leaves undone, halted or paused; empty where nothing.

        Of a paused shard it is not known whether there is anything in it.
        """
        halted, waiting = int(gauges.get("halted", 0)), int(gauges.get("paused", 0))
        generation = self._fleet.dealer.generation
        pauses = self.pauses.of(generation.number if generation else 0)
        shards = Pauses(pauses.service, pauses.generation, pauses.shards)
        told = [f"shards that are halted: {halted}"] if halted else []
        if shards:
            told.append(f"paused: {shards}")
        if waiting:
            handlers = Pauses(handlers=pauses.handlers)
            told.append(f"executions that wait for {handlers}, paused: {waiting}")
        return "; ".join(told)

    def _is_paused(self, shard: int) -> bool:
        generation = self._fleet.dealer.generation
        return generation is not None and self.pauses.covers(generation.number, shard)
