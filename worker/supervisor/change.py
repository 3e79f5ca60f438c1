"""Planned changes of the processes: fresh code one by one, or another number of them.

A change names the slots that get new processes, or lose theirs. It is *committed* when every new
process is ready; until then nothing was drained for it, and it can be given up without a trace.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from worker.supervisor.policy import Restarts
from worker.supervisor.stage import Stage

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from worker.sharding.generations import Plan
    from worker.supervisor.control import Terms
    from worker.supervisor.process import ChildProcess

logger = logging.getLogger("worker.supervisor")


@dataclass(slots=True, eq=False)
class Slot:
    """The place of one process: who has its shards, or some of them still, and who will.

    The holder alone takes shards. The leaver was the holder before, and drains. There is one at a
    time: where the holder resigns while there is one, its successor waits.
    """

    index: int
    leaver: ChildProcess | None = None
    holder: ChildProcess | None = None
    successor: ChildProcess | None = None
    restarts: Restarts = field(default_factory=Restarts)
    respawn_at: float = 0.0

    def children(self) -> Iterator[ChildProcess]:
        """Return the living processes of this slot."""
        everybody = (self.leaver, self.holder, self.successor)
        return (child for child in everybody if child is not None)

    def holders(self) -> Iterator[ChildProcess]:
        """Return the processes that may have shards."""
        return (child for child in (self.leaver, self.holder) if child is not None)

    @property
    def is_vacant(self) -> bool:
        """Whether nobody takes its shards, or will before long, and another process may."""
        holder = self.holder
        leaves = holder is not None and (holder.dismissed or holder.resigned)
        return holder is None or (leaves and self.leaver is None)

    @property
    def is_settled(self) -> bool:
        """Whether its holder consumes, and nobody leaves."""
        holder = self.holder
        return self.leaver is None and holder is not None and holder.progress is Stage.READY

    def promote(self) -> None:
        """Make the successor the holder, where that is gone or takes nothing more."""
        if self.is_vacant:
            self.leaver = self.holder or self.leaver
            self.holder, self.successor = self.successor, None

    def bury(self, child: ChildProcess) -> None:
        """Know nothing more of a process that died."""
        if child is self.leaver:
            self.leaver = None
        elif child is self.holder:
            self.holder = None
        else:
            self.successor = None


@dataclass(slots=True)
class Change:
    """These slots get new processes, so that there are ``processes`` in all."""

    slots: Sequence[Slot]
    processes: int
    #: The processes to be replaced.
    old: Sequence[ChildProcess]
    committed: bool = False

    def covers(self, slot: Slot) -> bool:
        """Whether ``slot`` takes part in this change."""
        return slot in self.slots

    def needs(self, slot: Slot) -> bool:
        """Whether ``slot`` needs a new process: it stays, and has none but an old one."""
        return slot.index < self.processes and (slot.is_vacant or slot.holder in self.old)

    def booted(self) -> bool:
        """Whether every new process declared, and no place has somebody who leaves it."""
        return all(
            slot.leaver is None
            and slot.successor is not None
            and slot.successor.progress is Stage.READY
            for slot in self.slots
            if slot.index < self.processes
        )

    def commit(self, seconds: float, now: float) -> None:
        """Drain the old processes, now that all of the new ones have booted."""
        self.committed = True
        for slot in self.slots:
            if slot.holder is not None:
                slot.holder.drain(seconds, now)

    def drop(self, processes: int) -> None:
        """End the new processes, but for those whose place is empty and one of ``processes``."""
        for slot in self.slots:
            slot.restarts = Restarts()
            surplus = slot.holder is not None or slot.index >= processes
            if slot.successor is not None and surplus:
                slot.successor.dismiss()

    def done(self) -> bool:
        """Whether every new process consumes, and every old or surplus one is gone."""
        return self.committed and all(
            slot.is_settled if slot.index < self.processes else not any(slot.holders())
            for slot in self.slots
        )


class Plans:
    """What was asked for and has not begun: a reload, another number of processes."""

    def __init__(self) -> None:
        self._reload = False
        self._stale: deque[int] = deque()
        self._processes: int | None = None

    @property
    def empty(self) -> bool:
        """Whether nothing waits to be done."""
        return not self._reload and not self._stale and self._processes is None

    def clear(self) -> None:
        """Forget everything that was asked for."""
        self._reload = False
        self._stale.clear()
        self._processes = None

    def reload(self) -> None:
        """Ask for fresh code in every process."""
        self._reload = True

    def resize(self, more: int, processes: int, terms: Terms, plan: Plan) -> None:
        """Ask for ``more`` than ``processes`` (fewer, if negative), within what is possible."""
        shards = terms.shards_of(plan)
        most = min(terms.most_processes, shards)
        before = self._processes or processes
        wanted = before + more
        if wanted < 1:
            logger.warning("not going below one process")
        elif wanted > most:
            logger.warning(
                "not going to %d processes: %d is the most (shards: %d), on this broker and dedup"
                " store",
                wanted,
                most,
                shards,
            )
        else:
            logger.info("going from %d to %d processes", before, wanted)
            self._processes = wanted if wanted != processes else None

    def again(self, change: Change, processes: int) -> None:
        """Ask once more for the number of processes of a change that was dropped for another."""
        if change.processes != processes:
            self._processes = change.processes

    def first(self, slots: list[Slot], terms: Terms, plan: Plan) -> int:
        """Return how many processes there are at first. Slots that they need are added."""
        processes = min(terms.processes, terms.shards_of(plan))
        slots += [Slot(index) for index in range(len(slots), processes)]
        return processes

    def next(self, slots: list[Slot], processes: int) -> Change | None:
        """Return the next change, or None. Slots that it needs are added to ``slots``."""
        if self._reload:
            self._reload = False
            self._stale = deque(range(processes))
            logger.info("reloading: %d processes get fresh code, one by one", processes)
        if self._processes is not None:
            wanted, self._processes = self._processes, None
            chosen = range(min(processes, wanted), max(processes, wanted))
            slots += [Slot(index) for index in range(len(slots), wanted)]
        elif self._stale:
            first = self._stale.popleft()
            wanted, chosen = processes, range(first, first + 1)
        else:
            return None
        changed = [slot for slot in slots if slot.index in chosen]
        old = [slot.holder for slot in changed if slot.holder is not None]
        return Change(changed, wanted, old)
