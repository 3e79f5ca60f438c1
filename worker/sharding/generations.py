"""Generations of a service's queues, and the steps from one to the next. Pure.

A generation is an exchange of its own and a number of queues behind it. Changing the number of
shards means a new generation, while publishers go on publishing:

1. ``declare``  the exchange and the queues of the next generation
2. ``bind``     it to everything that the code of the members names; every member does so, and
                declares the old one's exchange no more. Now a message goes to both; whoever comes
                second is a duplicate
3. ``seal``     the old one: its exchange is removed, so that nothing comes to it any more, and
                behind the last message of each queue goes a marker
4. ``drain``    the old one, up to the markers, by its ordinary consumers. The new one fills
5. ``remove``   the old one; from here on the new one is consumed, and never before

Each key's messages in the old generation are a prefix of its stream and those in the new one the
rest, with an overlap; as nothing of the rest is consumed before the prefix is through, order holds.
What still comes behind a marker (a retry that returns, a copy from a member that was cut off) goes
to the new one before the old one is removed; what is bound to both is a duplicate there. Likewise
what waits for an earlier revision when nothing else is left before the marker (``worker.onward``).

The old exchange keeps bindings of all code that ever ran, also of a release that was rolled back.
Those that no member has at ``bind`` are not made for the new one: their messages, which no handler
takes, were kept as dead letters and are dropped by the broker from ``seal`` on.

Until ``declare`` is through, nothing is bound and nobody declares anything but the old generation,
so the change can be *called off*: the plan has no target any more. Later there is only the way
forward. What was declared for it by then, or is still being declared by the member who leads, stays
behind, empty; and no later change meets it, because a number is given to one generation alone.

A service that never ran can begin with *the past*: with a generation that is bound to nothing, and
filled from the archive, while what is published gathers in the next one. That is a change like the
above, to the same number of shards, which begins at a step of its own, in place of ``declare``:

* ``replay`` both are declared, the next one is bound, the first one has no exchange. It is consumed
  while it fills. Whoever fills it ends the step when everything is there that was published before
  the next one was bound; ``worker.archive.seam`` has the argument

The plan is a document in the lease store. Every step can be repeated, and the document is changed
by compare-and-set after it; so whoever comes next, after a crash anywhere, does the last step once
more and goes on.

A store may forget the plan while a change is under way; then the broker has two generations, and
nobody knows how far it was. The change is resumed at ``bind``, from whatever step it was at:

* Never before it: the step ``declare`` lets members declare the old exchange. Where that was sealed
  already and its markers were not all there yet, messages would come to the old queues again, in
  front of the marker, that have predecessors in the new ones.
* Never behind it: where the old one was not sealed yet, the new one may not be bound; to seal
  would then lose what is published meanwhile.
* ``bind`` declares nothing of the old exchange, and makes sure that all of the new one is bound.
  ``seal`` again finds the exchange gone, or removes it, and puts a marker behind the markers that
  may be there; the first one counts. What was consumed of the old queues is gone from them, so
  ``drain`` finds their markers at once, also where the new one was consumed for a while already.
  What lies behind a first marker waits for ``remove``, as ever.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING

from worker.errors import ConfigurationError, StoreCorrupt, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence


class Phase(Enum):
    """The step that is to be done next."""

    DECLARE = "declare"
    REPLAY = "replay"
    BIND = "bind"
    SEAL = "seal"
    DRAIN = "drain"
    REMOVE = "remove"


_ORDER = list(Phase)
#: Generations that a broker has of a service at once, at most.
_MOST_AT_ONCE = 2
#: The name of the document that holds the plan.
PLAN = "plan"


def lease_of(generation: int, shard: int) -> str:
    """Return the name of the lease on a shard."""
    return f"g{generation}.{shard}"


@dataclass(frozen=True, slots=True)
class Generation:
    """A generation of queues."""

    number: int
    shards: int

    @property
    def counted(self) -> str:
        """How many shards it has, in words."""
        return f"{self.shards} shard{'' if self.shards == 1 else 's'}"

    @property
    def leases(self) -> list[str]:
        """The names of the leases on its shards, in their order."""
        return [lease_of(self.number, shard) for shard in range(self.shards)]

    @property
    def lease(self) -> str:
        """The name of the one lease on all of it, for a service with a single active process."""
        return f"g{self.number}"

    def shards_of(self, lease: str) -> range:
        """Return the shards that a lease is for; none where it is of something else."""
        if lease == self.lease:
            return range(self.shards)
        name, _, shard = lease.rpartition(".")
        if name != self.lease or not shard.isdecimal():
            return range(0)
        return range(int(shard), int(shard) + 1)


@dataclass(frozen=True, slots=True)
class Plan:
    """Which generation a service has, and which one it is on its way to."""

    current: Generation
    target: Generation | None = None
    #: The step to the target that is to be done next; None where there is no target.
    phase: Phase | None = None
    #: Whether one process at a time consumes all of it.
    single_active: bool = False
    #: Rises with each change, and with its calling off. The generation that a change leads to has
    #: this number, so no two have the same, also where one of them never came to be.
    revision: int = 0
    #: The id of the replay that it is held for, in the step ``replay``.
    replay: str = ""

    @classmethod
    def found(cls, generations: Sequence[Generation], *, single_active: bool) -> Plan:
        """Return the plan that follows from the generations that a broker has, in their order.

        Raises ConfigurationError for more than the two that a change leads from and to.
        """
        if len(generations) > _MOST_AT_ONCE:
            numbers = ", ".join(str(each.number) for each in generations)
            raise ConfigurationError(
                f"the lease store has no plan of shards, and the broker has queues of the"
                f" generations {numbers}: two are the most that a change can leave. Remove those"
                " that are not the service's, then start again"
            )
        current, *rest = generations
        target, phase = (rest[0], Phase.BIND) if rest else (None, None)
        return cls(current, target, phase, single_active)

    @classmethod
    def held(cls, shards: int, replay: str, *, single_active: bool) -> Plan:
        """Return the plan of a service that begins with the past, while what is live is held."""
        past, live = Generation(1, shards), Generation(2, shards)
        return cls(past, live, Phase.REPLAY, single_active, live.number, replay)

    @property
    def is_from_the_past(self) -> bool:
        """Whether it leads from the past to what is live: no other change is to as many shards."""
        return self.target is not None and self.target.shards == self.current.shards

    @property
    def change(self) -> str:
        """The change that is under way, in words; empty where none is."""
        if self.target is None:
            return ""
        if self.is_from_the_past:
            return "from the past to what is live"
        return f"reshard from {self.current.shards} to {self.target.counted}"

    @property
    def shards(self) -> set[int]:
        """The numbers of shards that the service has, or is on its way to."""
        return {each.shards for each in (self.current, self.target) if each is not None}

    @property
    def progress(self) -> tuple[int, int, int]:
        """How far it is: a plan that comes after another has more of it, always.

        First counts what was done on the broker, which nothing undoes: the generation, and the
        steps of the change but the first. A plan that was found there (``found``) has these, and no
        revision, and yet comes after one that somebody remembers from before. Among plans that
        differ in nothing of it the revision counts: there changes are asked for and called off.
        """
        steps = 0 if self.phase is None else _ORDER.index(self.phase)
        return self.current.number, steps, self.revision

    @property
    def consumed(self) -> Generation:
        """The one generation that may be consumed now."""
        if self.target is not None and self.phase is Phase.REMOVE:
            return self.target
        return self.current

    @property
    def published(self) -> Generation:
        """The generation whose exchange takes what is sent to this service alone, as a replay is.

        It is the one that gets every message, and is not sealed.
        """
        if self.target is None or self.phase in (Phase.DECLARE, Phase.REPLAY, Phase.BIND):
            return self.current
        return self.target

    @property
    def is_between(self) -> bool:
        """Whether messages come, or may come, to a generation that is not consumed yet."""
        return self.phase in (Phase.REPLAY, Phase.BIND, Phase.SEAL, Phase.DRAIN)

    def reshard(self, shards: int) -> Plan:
        """Return the plan that leads to ``shards``.

        The same plan where it leads there already; where it led elsewhere and ``shards`` are those
        that there are, one that calls that off. Raises UsageError where it cannot.
        """
        before, target = self.current.shards, self.target
        if shards == (before if target is None else target.shards):
            return self
        revision = max(self.revision, self.current.number) + 1
        if target is None:
            target = Generation(revision, shards)
            return replace(self, target=target, phase=Phase.DECLARE, revision=revision)
        young = self.phase is Phase.DECLARE
        if young and shards == before:
            return replace(self, target=None, phase=None, revision=revision)
        off = f" or call it off ('qworker reshard --to {before}')" if young else ""
        late = ", too far to be called off" if shards == before else ""
        change = f"from {before} to {target.counted}"
        if self.is_from_the_past:
            change = "from the past to what is live (a replay with --hold-live)"
        raise UsageError(
            f"a change {change} is under way{late}; let it end"
            f" ('qworker reshard --to {target.shards}' shows it){off}, then ask again"
        )

    def advanced(self) -> Plan:
        """Return the plan after its next step was done."""
        if self.target is None or self.phase is None:
            raise ValueError("there is no step to be done")
        if self.phase is Phase.REMOVE:
            return replace(self, current=self.target, target=None, phase=None)
        if self.phase is Phase.DECLARE:
            return replace(self, phase=Phase.BIND)
        return replace(self, phase=_ORDER[_ORDER.index(self.phase) + 1], replay="")

    def dump(self) -> str:
        """Return the plan as a document."""
        told = asdict(self)
        told["phase"] = self.phase.value if self.phase is not None else None
        return json.dumps(told, separators=(",", ":"))

    @classmethod
    def load(cls, text: str) -> Plan:
        """Read what ``dump`` wrote. Raises StoreCorrupt for anything else."""
        try:
            told = json.loads(text)
            target, phase = told["target"], told["phase"]
            plan = cls(
                Generation(**told["current"]),
                None if target is None else Generation(**target),
                None if phase is None else Phase(phase),
                bool(told["single_active"]),
                int(told["revision"]),
                str(told.get("replay", "")),
            )
        except (ValueError, TypeError, LookupError) as error:
            raise StoreCorrupt(f"the lease store holds no plan of shards: {error!r}") from None
        if (plan.target is None) is not (plan.phase is None):
            raise StoreCorrupt("the lease store holds no plan of shards: half of a change")
        return plan
