"""A change of the number of shards, as far as this supervisor has to do with it.

Every member brings its processes along: from the step ``bind`` on they declare the next generation
and leave the exchange of the old one alone, also at reconnections; from ``remove`` on they leave
its queues alone too. It tells the others, in its facts, which version of the plan all of its
processes follow, and which shards are drained.

``bind`` ends, and ``remove`` begins, when all processes of all members have declared what the plan
says. A process that cannot connect, or is refused, is waited for as long as it lives: it has a
connection by an earlier plan, or may be making one. Meanwhile the others consume, and in ``remove``
the new queues. One that dies, or hangs until the watchdog ends it, is not waited for where its
member has another that follows; else its successor is, as nobody else may know the bindings of its
code. Nor is a member whom the lease store has not heard for ``lease_ttl``: its trust has ended
before, and without trust nothing is declared.

One member leads: the one that owns the lease for it. It has the steps on the broker taken by one
of its processes, and writes the plan that comes next by compare-and-set; so where it dies, or
sleeps past its lease, another takes the same step again and goes on. Where the change was called
off meanwhile, what it proposes is of a version that is gone, and no step is taken again.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from worker.sharding.generations import Generation, Phase
from worker.supervisor.control import Followed, Found, Look, Step, Stepped
from worker.supervisor.facts import Facts
from worker.supervisor.stage import Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from worker.leases.base import View
    from worker.sharding.generations import Plan
    from worker.supervisor.process import ChildProcess

logger = logging.getLogger("worker.supervisor")

#: Seconds until a step is taken again that could not be finished, or that failed.
_AGAIN, _AFTER_ERROR = 0.5, 2.0
#: What grows if it is long in coming, up to this.
_LONGEST_AGAIN = 10.0

_CONNECTED = (Stage.OPENING, Stage.READY, Stage.DRAINING)


class Resharder:
    """Follows the plan, and leads it. Used by the supervisor's loop.

    ``propose`` is called with the version of the plan and the text that should come after it.
    """

    def __init__(self, propose: Callable[[int, str], None]) -> None:
        self._propose = propose
        #: Told of the generations that the broker has, after ``look``; and who looks.
        self.on_found: Callable[[list[Generation]], None] = lambda _found: None
        self._looking: ChildProcess | None = None
        self.plan: Plan | None = None
        self.version = 0
        #: The version that all processes follow.
        self.followed = 0
        self._leads = False
        self._members: tuple[Facts, ...] = ()
        #: The version whose step is being taken, or was proposed to be over; by which process; and
        #: when it may be taken again.
        self._asked = 0
        self._asked_of = 0
        self._again_at = 0.0
        self._proposed, self._proposed_at = 0, 0.0
        self._tries = 0
        #: The versions began anew, because the lease store forgot; what processes know is void.
        self._anew = False

    def hear(self, plan: Plan, view: View, version: int, *, leads: bool) -> None:
        """Take in what the lease store says.

        ``leads``: the lease for leading is ours, and the store knows all members. Whether what it
        said may still be trusted is for the caller of ``drive`` to look at.
        """
        if version != self.version and plan.target is not None and plan.phase is not None:
            logger.info("%s: %s", plan.change, plan.phase.value)
        elif self.plan is not None and self.plan.target is not None and plan.target is None:
            end = "called off" if plan.current == self.plan.current else "done"
            what = self.plan.change if self.plan.is_from_the_past else "reshard"
            logger.info("%s: %s, %s", what, end, plan.current.counted)
        if version < self.version or (version == self.version and plan != self.plan):
            self._anew = True
            self.followed = self._asked = self._proposed = 0
        self.plan, self.version = plan, version
        self._leads = leads
        self._members = tuple(map(Facts.load, view.members.values()))

    def drive(self, children: Iterable[ChildProcess], now: float) -> None:
        """Bring the processes along; take the next step where it is ours to take.

        Only while leases are trusted: later there may be another plan, and another who leads.
        """
        plan = self.plan
        if plan is None:
            return
        children = [child for child in children if child.stage in _CONNECTED]
        if self._anew:
            self._anew = False
            for child in children:
                child.told = child.followed = 0
        for child in children:
            behind = child.told != self.version or now >= child.follow_at
            if behind and child.stage is not Stage.OPENING:
                child.follow(plan, self.version)
        if children and all(child.followed == self.version for child in children):
            self.followed = self.version
        if now >= self._proposed_at + _AFTER_ERROR:
            self._proposed = 0  # it was written, and went with a store that went back
        if self._leads and plan.target is not None and self._proposed != self.version:
            self._lead(plan, children, now)

    def look(self, children: Iterable[ChildProcess]) -> None:
        """Have a process look for the generations that the broker has; ``on_found`` is told."""
        greeted = [child for child in children if child.stage is Stage.GREETED]
        if greeted and self._looking not in greeted:
            self._looking = greeted[0]
            self._looking.say(Look())

    def heard(self, child: ChildProcess, message: Found | Followed | Stepped, now: float) -> None:
        """Take in what a process says of the plan."""
        match message:
            case Found(generations):
                self.on_found([Generation(*each) for each in generations])
            case Followed(version, ""):
                child.follows(version)
            case Followed(version, error):
                # It was told all the same: it will bring back nothing of an earlier plan.
                logger.warning(
                    "process %d cannot declare its queues, and tries again in %g s: %s",
                    child.index,
                    _AFTER_ERROR,
                    error,
                )
                if version == child.told:
                    child.follow_at = now + _AFTER_ERROR
            case Stepped():
                self.stepped(message, now)

    def stepped(self, message: Stepped, now: float) -> None:
        """A process tried to take a step."""
        if message.version != self._asked or self.plan is None:
            return
        if message.error:
            logger.warning("reshard: trying again in %g s: %s", _AFTER_ERROR, message.error)
        if message.done and self.version == message.version:
            self._advance(self.plan, now)
            return
        self._asked = 0
        self._tries += 1
        again = min(_AGAIN * 1.2 ** min(self._tries, 50), _LONGEST_AGAIN)
        self._again_at = now + (_AFTER_ERROR if message.error else again)

    def _lead(self, plan: Plan, children: list[ChildProcess], now: float) -> None:
        match plan.phase:
            case Phase.BIND:
                if self._all_follow():
                    self._advance(plan, now)
            case Phase.DRAIN:
                drained = {name for member in self._members for name in member.drained}
                if drained.issuperset(plan.current.leases):
                    self._advance(plan, now)
            case Phase.REPLAY:
                pass  # whoever sends the past ends it
            case Phase.REMOVE if not self._all_follow():
                pass  # or the old queues might be declared again after they were removed
            case _:
                self._take_step(plan, children, now)

    def _all_follow(self) -> bool:
        """Whether all processes of all members declare what the plan of now says."""
        followed = [self.followed, *(member.followed for member in self._members)]
        return all(version == self.version for version in followed)

    def _take_step(self, plan: Plan, children: list[ChildProcess], now: float) -> None:
        if self._asked == self.version and any(c.pid == self._asked_of for c in children):
            return  # it is at it
        able = [child for child in children if child.stage is Stage.READY]
        if able and now >= self._again_at:
            self._asked, self._asked_of = self.version, able[0].pid
            able[0].say(Step(plan.dump(), self.version))

    def _advance(self, plan: Plan, now: float) -> None:
        self._proposed, self._proposed_at = self.version, now
        self._tries = 0
        self._propose(self.version, plan.advanced().dump())
