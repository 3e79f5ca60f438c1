"""What one member owns, and what it asks the lease store for. Pure: no clock, no I/O.

Each round is one call to the store: :meth:`Ownership.ask` says what to send, :meth:`Ownership.hear`
takes the answer and says what follows from it. Between them, whoever consumes a shard reports by
:meth:`Ownership.given` that it is done with it.

1. Everything owned is renewed in every round, also what is being given up.
2. A shard that should be another's is given up: its consumer drains, then it is released, then the
   other may have it. So a hand-over never has two consumers.
3. A free shard that should be ours is asked for at once. What has an owner moves only after the
   members have been the same for a while, so that several that start together cause one move.
4. Whatever the store says is no longer ours is lost, at once.
5. Where the store forgot, nothing new is ours for the length of a lease, and what is ours stays.
   What looks free then may have an owner who still trusts it; whoever has one renews it meanwhile,
   or does not trust it any more. What was ours, and is not trusted any more, is lost meanwhile,
   whatever the store says.

A shard is *trusted* until a time that its last renewal gave it; past that nothing of it may begin.
That time is one for all that a member has: whatever a call did not renew, or ask for, is not ours
after it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from worker.leases.base import Held, Sync, trusted_until
from worker.sharding.assignment import assign

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from worker.leases.base import View

#: Seconds for which the members must have been the same before an owned shard moves.
DAMPING = 1.0


class Grant(NamedTuple):
    """A lease that is ours: its epoch, and until when it may be trusted (monotonic clock)."""

    epoch: int
    trusted_until: float


class Orders(NamedTuple):
    """What follows from an answer of the store."""

    #: Leases that became ours; consume them.
    take: dict[str, Grant]
    #: Leases to give up: finish what runs, then call ``given``.
    give: list[str]
    #: Leases that somebody else may own by now: begin nothing more, close everything.
    lost: list[str]


class Ownership:
    """The leases of one member. Used by one thread; times are of its monotonic clock.

    ``is_able`` tells from a member's facts whether shards may be assigned to it.
    """

    def __init__(
        self,
        member: str,
        ttl: float,
        is_able: Callable[[str], bool] = lambda _facts: True,
        *,
        damping: float = DAMPING,
    ) -> None:
        self.member = member
        self._ttl = ttl
        self._is_able = is_able
        self._damping = damping
        #: What is ours, as far as we know; also what is being given up.
        self.grants: dict[str, Grant] = {}
        self._giving: set[str] = set()
        self._given: set[str] = set()
        self._wanted: list[str] = []
        #: What the last call renewed, and what it asked for.
        self._renewed: frozenset[str] = frozenset()
        self._asked: frozenset[str] = frozenset()
        #: The store's watched time as it was told last.
        self._watched = 0.0
        #: The store forgot, since the last call; and until when nothing new is wanted for that.
        self._forgot = False
        self._settles_until = float("-inf")
        self._leaving = False
        #: What is ours was heard since we began to leave: no grant is still on its way.
        self._knows_all = False
        self._members: frozenset[str] = frozenset()
        #: The others see this one, as far as we know.
        self._is_member = True
        self._same_since = float("-inf")

    @property
    def wanted(self) -> Sequence[str]:
        """The leases that are asked for."""
        return self._wanted

    @property
    def gone(self) -> bool:
        """Whether a member that leaves owns nothing any more, and everybody knows."""
        return self._knows_all and not self.grants and not self._is_member

    def leave(self) -> list[str]:
        """Own nothing from now on; return the leases to give up."""
        if not self._leaving:
            self._leaving, self._knows_all, self._wanted = True, False, []
        return self._give(list(self.grants))

    def given(self, name: str, epoch: int | None = None) -> None:
        """Nothing of this lease runs any more, and its channel is closed.

        ``epoch``, where it is told, is that of the grant: what was lost and became ours again
        meanwhile is another one.
        """
        grant = self.grants.get(name)
        if grant is None or epoch not in (None, grant.epoch):
            return
        self._given.add(name)
        self._giving.discard(name)

    def forgotten(self) -> None:
        """The store forgot: nothing that it grants is believed, for the length of a lease."""
        self._forgot = True
        self._asked = frozenset()
        self._wanted = []

    def settling(self, now: float) -> float:
        """Return the seconds for which nothing new is wanted, because the store forgot."""
        return self._ttl if self._forgot else max(0.0, self._settles_until - now)

    def ask(self, facts: str, now: float = float("-inf")) -> Sync:
        """Return the next call to the store, which begins at ``now``.

        A lease that is not trusted any more is asked for instead of renewed: where the store
        forgot it, somebody else may have owned it since, with a higher epoch than ours. While
        nothing new is wanted it is not asked for either, and lost with the answer.
        """
        if self._forgot:  # before this call: so whoever renewed before that trusts no longer than
            self._forgot, self._settles_until = False, now + self._ttl  # this, however long it took
        held = {name: grant for name, grant in self.grants.items() if name not in self._given}
        old = [name for name, grant in held.items() if grant.trusted_until < now]
        asked = [] if self.settling(now) else [*self._wanted, *old]
        self._renewed, self._asked = frozenset(held.keys() - {*old}), frozenset(asked)
        return Sync(
            self.member,
            facts,
            release=[Held(name, self.grants[name].epoch) for name in sorted(self._given)],
            renew=[Held(name, held[name].epoch) for name in sorted(self._renewed)],
            acquire=asked,
            leaving=self._knows_all and self.grants.keys() <= self._given,
        )

    def hear(
        self, view: View, asked_at: float, shards: Sequence[str], jobs: Sequence[str] = ()
    ) -> Orders:
        """Take the answer to a call that was begun at ``asked_at``.

        ``shards`` are the leases that this service has now, to be shared out. ``jobs`` are those
        that anybody may have, and that whoever has one keeps.
        """
        if view.watched < self._watched:
            self.forgotten()
        self._watched = view.watched
        mine = view.held_by(self.member)
        self._is_member = self.member in view.members
        trusted_anew = self._renewed | self._asked
        lost = [
            name
            for name, grant in self.grants.items()
            if mine.get(name) != grant.epoch or name not in trusted_anew
        ]
        released = [name for name in lost if name in self._given]
        for name in lost:
            del self.grants[name]
        self._giving.difference_update(lost)
        self._given.difference_update(lost)
        trusted = trusted_until(asked_at, self._ttl)
        new = {n: Grant(epoch, trusted) for n, epoch in mine.items() if n not in self.grants}
        # What we did not ask for is of a store that went back to what it was before, or was lost
        # right now: others may have owned it since. It is released, and asked for anew, with an
        # epoch above theirs.
        take = {name: grant for name, grant in new.items() if name in self._asked}
        self._given.update(new.keys() - take.keys())
        self.grants = {name: Grant(epoch, trusted) for name, epoch in mine.items()}
        if self._leaving:  # it was on its way when we began to; nobody consumes it
            self._given.update(take)
            take = {}
            self._knows_all = True
        give = self._decide(view, asked_at, shards, jobs)
        return Orders(take, give, [name for name in lost if name not in released])

    def _decide(
        self, view: View, now: float, shards: Sequence[str], jobs: Sequence[str]
    ) -> list[str]:
        """Settle what to ask for next; return what to give up."""
        able = frozenset(
            member
            for member, facts in view.members.items()
            if self._is_able(facts) and not (self._leaving and member == self.member)
        )
        if able != self._members:
            self._members, self._same_since = able, now
        owners = {name: lease.owner for name, lease in view.leases.items()}
        if self.settling(now):
            self._wanted = []
            return []
        goal = assign(shards, able, owners)
        self._wanted = [
            name for name in shards if name not in owners and goal.get(name) == self.member
        ]
        if self.member in able:
            self._wanted += [name for name in jobs if name not in owners]
        if self._leaving or now - self._same_since < self._damping:
            return []  # a member that leaves gave everything up when it began to
        # Without anybody able to have it, a shard stays where it is.
        keep = {name for name in shards if goal.get(name, self.member) == self.member}
        if self.member in able:
            keep.update(jobs)
        return self._give([name for name in self.grants if name not in keep])

    def _give(self, names: list[str]) -> list[str]:
        new = [name for name in names if name not in self._giving and name not in self._given]
        self._giving.update(new)
        return new
