"""Deals the shards whose leases a supervisor owns to its processes. No clock, and no I/O but words.

A shard is in one process at a time: it is taken by one, and by no other before that one said that
it has given it, or is dead. So is all that one lease covers, which are all shards of a service that
has a single active process. A lease goes back to the keeper when none of its shards is anywhere.
Which process gets which shard is assigned like shards to supervisors (``sharding.assignment``), by
the places of the processes, so that a process that is replaced gets the shards that its
predecessor had.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from worker.sharding.assignment import assign
from worker.sharding.generations import lease_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from worker.sharding.generations import Generation, Plan


class Hand(Protocol):
    """A process that shards are dealt to."""

    pid: int
    #: What it told of itself last.
    statistics: Mapping[str, object]
    #: The number of its place among the processes.
    index: int
    #: The generation whose queues it knows; 0 while it knows none.
    generation: int
    #: The version of the plan that it was told last: it brings back nothing of an earlier one.
    told: int
    #: The shards that it was told to take, until it gave them, with their fences.
    shards: dict[int, int]
    #: Those of them that it was told to give.
    giving: set[int]

    @property
    def serves(self) -> bool:
        """Whether it may be told of a generation, and to take shards of the one that it knows."""

    def open(self, plan: Plan, version: int, trusted_until: float) -> None:
        """Tell it to leave the generation that it knows for the one that this plan consumes."""

    def take(self, fences: Mapping[int, int], trusted_until: float) -> None:
        """Tell it to take shards."""

    def give(self, shards: Sequence[int]) -> None:
        """Tell it to give shards."""

    def lose(self, shards: Sequence[int]) -> None:
        """Tell it that shards may be somebody else's."""

    def trust(self, until: float) -> None:
        """Tell it until when its shards may be trusted."""


class Dealer:
    """Which shards are owned here, and which process has each. Used by the supervisor's loop.

    ``given`` is called with the name of a lease of which nothing is consumed any more, and the
    epoch that it was granted with.
    """

    def __init__(self, given: Callable[[str, int], None]) -> None:
        self._given = given
        #: The plan of generations, and the version of its document; None until it is known.
        self.plan: Plan | None = None
        self.version = 0
        #: The leases that are owned, with their epochs.
        self.owned: dict[str, int] = {}
        self.trusted_until = 0.0
        #: Shards that nobody shall consume for now.
        self.paused: Callable[[int], bool] = lambda _shard: False
        #: Generations by their numbers.
        self._generations: dict[int, Generation] = {}
        self._giving: set[str] = set()
        self._last: dict[int, int] = {}
        self._goal: tuple[object, dict[int, int]] = (None, {})

    @property
    def generation(self) -> Generation | None:
        """The generation that is consumed; None until it is known."""
        return self.plan.consumed if self.plan is not None else None

    def follow(self, plan: Plan, version: int) -> None:
        """Consume what this plan says from now on."""
        self.plan, self.version = plan, version
        self._generations[plan.consumed.number] = plan.consumed

    def lose(self, names: Iterable[str], hands: Sequence[Hand]) -> None:
        """Somebody else may own these leases by now: tell whoever has their shards."""
        for name in names:
            self.owned.pop(name, None)
            self._giving.discard(name)
            for hand in hands:
                if lost := [shard for shard in self._shards(hand, name) if shard in hand.shards]:
                    hand.lose(lost)

    def hear(self, take: Mapping[str, int], give: Iterable[str]) -> None:
        """Note leases that became ours, and those that are to be given up."""
        self.owned.update(take)
        self._giving.update(give)

    def trust(self, until: float, hands: Sequence[Hand]) -> None:
        """Trust all that is owned until then."""
        self.trusted_until = until
        for hand in hands:
            if hand.told == self.version:  # it declares what the plan of now says, and nothing else
                hand.trust(until)

    def deal(self, hands: Sequence[Hand], places: Sequence[int], now: float) -> None:
        """Tell every process what follows. ``places`` are those that shards may go to."""
        plan, generation = self.plan, self.generation
        if plan is None or generation is None:
            return
        wanted = self._wanted(generation)
        goal = self._assigned(wanted, hands, places)
        for hand in hands:
            current = hand.generation == generation.number
            surplus = [
                shard
                for shard, fence in hand.shards.items()
                if shard not in hand.giving
                and hand.serves
                and not (current and wanted.get(shard) == fence and goal.get(shard) == hand.index)
            ]
            if surplus:
                hand.give(surplus)
            if hand.serves and not current and not hand.shards and now < self.trusted_until:
                hand.open(plan, self.version, self.trusted_until)
        at = self._at(generation, hands)
        for hand in hands:
            fences = {
                shard: fence
                for shard, fence in wanted.items()
                if goal.get(shard) == hand.index
                and shard not in hand.shards
                and at[shard] <= {hand.pid}
            }
            able = hand.serves and hand.generation == generation.number
            if fences and able and now < self.trusted_until:
                hand.take(fences, self.trusted_until)
                self._last.update(dict.fromkeys(fences, hand.index))
        self._release(hands)

    def facts(self, hands: Sequence[Hand]) -> dict[str, dict[str, object]]:
        """Return what is known of each shard that is consumed, by the name of its lease."""
        found: dict[str, dict[str, object]] = {}
        for hand in hands:
            generation = self._generations.get(hand.generation)
            told = hand.statistics.get("shards")
            numbers = told if isinstance(told, dict) else {}
            names = generation.leases if generation is not None else []
            for shard in hand.shards:
                found[names[shard]] = {"pid": hand.pid, **numbers.get(str(shard), {})}
        return found

    def drained(self, hands: Sequence[Hand]) -> list[str]:
        """Return the leases of the shards that are consumed up to the marker of their end."""
        found = []
        for hand in hands:
            told = hand.statistics.get("drained")
            if isinstance(told, list):
                mine = {lease_of(hand.generation, shard) for shard in hand.shards}
                found += [name for name in told if name in mine]
        return found

    def settled(self, hands: Sequence[Hand]) -> bool:
        """Tell whether every shard that is owned, and not paused, is in a process and stays."""
        held = {shard for hand in hands for shard in hand.shards if shard not in hand.giving}
        return (
            self.generation is not None
            and not self._giving
            and held == self._wanted(self.generation).keys()
        )

    def _wanted(self, generation: Generation) -> dict[int, int]:
        """Return the shards that are to be consumed, with their fences."""
        return {
            shard: epoch
            for name, epoch in self.owned.items()
            if name not in self._giving
            for shard in generation.shards_of(name)
            if not self.paused(shard)
        }

    def _assigned(
        self, wanted: Mapping[int, int], hands: Sequence[Hand], places: Sequence[int]
    ) -> dict[int, int]:
        """Return the place that each wanted shard should be at."""
        number = self.generation.number if self.generation else 0
        here = dict(self._last)
        for hand in hands:
            if hand.generation == number:
                here.update(dict.fromkeys(hand.shards, hand.index))
        key = ([*wanted], [*places], here)
        if self._goal[0] != key:
            goal = assign(
                [str(shard) for shard in wanted],
                [str(place) for place in places],
                {str(shard): str(place) for shard, place in here.items()},
            )
            self._goal = key, {int(shard): int(place) for shard, place in goal.items()}
        return self._goal[1]

    def _at(self, generation: Generation, hands: Sequence[Hand]) -> dict[int, set[int]]:
        """Return for each shard which processes have something of what its lease covers."""
        known = [hand for hand in hands if hand.generation == generation.number]
        found: dict[int, set[int]] = {}
        for name in self.owned:
            shards = generation.shards_of(name)
            pids = {hand.pid for hand in known if any(shard in hand.shards for shard in shards)}
            found.update(dict.fromkeys(shards, pids))
        return found

    def _release(self, hands: Sequence[Hand]) -> None:
        """Give back the leases of which no process has anything."""
        for name in sorted(self._giving):
            if not any(s in hand.shards for hand in hands for s in self._shards(hand, name)):
                self._giving.discard(name)
                self._given(name, self.owned.pop(name, 0))

    def _shards(self, hand: Hand, name: str) -> range:
        """Return the shards that a lease is for, in the generation that the process knows."""
        generation = self._generations.get(hand.generation)
        return range(0) if generation is None else generation.shards_of(name)
