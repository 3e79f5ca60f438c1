"""Members that share shards by leases: never two owners, and in the end everything balanced.

The members run on one fake clock against the real rules of a store; calls fail, answers get lost,
members sleep, die and leave.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from random import Random

import pytest

from worker.leases.base import Held, Lease, LeaseOptions, Sync, View, trusted_until
from worker.leases.memory import MemoryLeases
from worker.sharding.ownership import Orders, Ownership

TTL = 10.0
SHARDS = [f"g1.{number}" for number in range(16)]


class World:
    """A store and a clock."""

    def __init__(self, seed: int = 0) -> None:
        self.now = 0.0
        self.random = Random(seed)
        self.store = MemoryLeases(LeaseOptions(ttl=TTL), clock=lambda: self.now)
        self.members: list[Member] = []
        self.fences: dict[str, int] = {}

    def join(self, name: str) -> Member:
        member = Member(self, name)
        self.members.append(member)
        return member

    def go(self, seconds: float, *, faults: bool = False) -> None:
        """Let everybody do a round about once a second, in no order, and check all along."""
        until = self.now + seconds
        while self.now < until:
            self.now += 0.05
            for member in self.members:
                if member.due <= self.now:
                    member.due = self.now + self.random.uniform(0.5, 1.0)
                    member.round(self.random.choice(FAULTS) if faults else "")
                member.finish_giving()
            self.check()

    def forget(self) -> None:
        """Empty the store."""
        self.store._books.clear()

    def check(self) -> None:
        """Nobody consumes what somebody else may consume, and a successor's fence is higher."""
        trusted = [
            (name, member.name)
            for member in self.members
            for name in member.consumed
            if member.trusted_until > self.now
        ]
        assert len(trusted) == len(dict(trusted)), f"two owners at {self.now:.2f} s: {trusted}"

    def loads(self) -> Counter[str]:
        return Counter(m.name for m in self.members for _ in m.consumed)


FAULTS = ["", "", "", "not sent", "no answer"]
#: The share of a lease's length after which its holder does not trust it, and others do not own it.
LATE = 0.92


class Member:
    """A supervisor, as far as ownership goes: what it took it consumes until it gave it.

    Whatever it consumes is trusted for as long as the last answer allows.
    """

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.ownership = Ownership(name, TTL)
        self.consumed: dict[str, int] = {}
        self.giving: dict[str, float] = {}
        self.trusted_until = float("-inf")
        self.due = world.now
        #: Whether the store ever answered it: it can tell then that the store was emptied.
        self.heard = False

    def round(self, fault: str) -> Orders:
        asked_at = self.world.now
        sync = self.ownership.ask("", asked_at)
        if fault == "not sent":
            return Orders({}, [], [])
        view = self.world.store.sync("bank", sync)
        if fault == "no answer":
            return Orders({}, [], [])
        return self.hear(view, asked_at)

    def hear(self, view: View, asked_at: float) -> Orders:
        orders = self.ownership.hear(view, asked_at, SHARDS)
        self.heard = True
        self.trusted_until = trusted_until(asked_at, TTL)
        for name in orders.lost:
            self.consumed.pop(name, None)
            self.giving.pop(name, None)
        for name, grant in orders.take.items():
            assert name not in self.consumed
            assert grant.epoch > self.world.fences.get(name, 0), "the fence fell"
            self.world.fences[name] = grant.epoch
            self.consumed[name] = grant.epoch
        for name in orders.give:
            self.giving[name] = self.world.now + self.world.random.uniform(0.0, 3.0)
        return orders

    def finish_giving(self) -> None:
        for name in [n for n, at in self.giving.items() if at <= self.world.now]:
            del self.giving[name]
            del self.consumed[name]
            self.ownership.given(name)

    def die(self) -> None:
        self.world.members.remove(self)


def test_the_first_member_takes_everything_at_once() -> None:
    world = World()
    world.join("ann")
    world.go(1.5)

    assert world.loads() == {"ann": 16}


def test_a_member_that_joins_gets_its_share_and_one_that_leaves_gives_it_back() -> None:
    world = World()
    ann = world.join("ann")
    world.go(2)
    bob = world.join("bob")
    world.go(8)
    assert world.loads() == {"ann": 8, "bob": 8}

    for name in ann.ownership.leave():
        ann.giving[name] = world.now + 1.0
    world.go(4)

    assert world.loads() == {"bob": 16}
    assert ann.ownership.gone
    said = bob.ownership.ask("")
    assert (said.acquire, said.release, bob.giving) == ([], [], {}), "nothing is on its way"
    assert world.store.look("bank").members.keys() == {"bob"}


def test_members_that_join_together_cause_one_move() -> None:
    world = World()
    ann = world.join("ann")
    world.go(2)
    world.join("bob")
    world.join("eve")
    world.join("joe")
    world.go(8)

    assert set(world.loads().values()) == {4}
    assert len(ann.consumed) == 4


def test_what_a_dead_member_had_is_taken_when_its_leases_ended() -> None:
    world = World()
    ann, _ = world.join("ann"), world.join("bob")
    world.go(8)
    ann.die()
    world.go(TTL - 2.0)
    assert world.loads() == {"bob": 8}
    world.go(4.0)
    assert world.loads() == {"bob": 16}


def test_a_sleeper_learns_what_it_lost_and_gets_its_share_anew() -> None:
    world = World()
    ann, _ = world.join("ann"), world.join("bob")
    world.go(8)
    had = dict(ann.consumed)
    ann.due = world.now + 2.5 * TTL
    world.go(2 * TTL)
    assert all(ann.ownership.grants[name].trusted_until < world.now for name in had)
    world.go(2 * TTL)

    assert world.loads() == {"ann": 8, "bob": 8}
    assert all(ann.consumed[name] > had[name] for name in ann.consumed.keys() & had.keys())


def test_a_lease_of_a_generation_that_is_gone_is_given_up() -> None:
    world = World()
    ann = world.join("ann")
    for _ in range(2):
        answer = world.store.sync("bank", ann.ownership.ask(""))
        ann.ownership.hear(answer, world.now, ["g0.0"])
    world.now += 2.0
    orders = ann.ownership.hear(world.store.sync("bank", Sync("ann")), world.now, SHARDS)

    assert orders.give == ["g0.0"]


def test_what_a_store_that_went_back_says_is_ours_is_released_and_asked_for_anew() -> None:
    ann = Ownership("ann", TTL)
    ann.hear(View({"ann": ""}), 0.0, ["g1.0"])
    ann.ask("", 1.0)
    ann.hear(View({"ann": ""}, {"g1.0": Lease("bob", 7, TTL)}), 1.0, ["g1.0"])

    before = View({"ann": ""}, {"g1.0": Lease("ann", 5, TTL)})
    ann.ask("", 2.0)
    orders = ann.hear(before, 2.0, ["g1.0"])

    assert orders == ({}, [], [])
    assert ann.ask("", 3.0).release == [Held("g1.0", 5)]


def test_a_lease_that_is_not_trusted_any_more_is_asked_for_and_not_renewed() -> None:
    ann = Ownership("ann", TTL)
    ann.hear(View({"ann": ""}), 0.0, ["g1.0"])
    ann.ask("", 0.5)
    mine = View({"ann": ""}, {"g1.0": Lease("ann", 5, TTL)})
    assert ann.hear(mine, 0.5, ["g1.0"]).take.keys() == {"g1.0"}

    assert ann.ask("", 1.0).renew == [Held("g1.0", 5)]
    late = ann.ask("", 2 * TTL)
    assert (late.renew, late.acquire) == ([], ["g1.0"])

    anew = View({"ann": ""}, {"g1.0": Lease("ann", 9, TTL)})
    orders = ann.hear(anew, 2 * TTL, ["g1.0"])
    assert (orders.lost, orders.take["g1.0"].epoch) == (["g1.0"], 9)


def test_what_was_given_before_it_was_lost_and_came_back_is_not_released() -> None:
    ann = Ownership("ann", TTL)
    ann.hear(View({"ann": ""}), 0.0, ["g1.0"])
    ann.ask("", 0.5)
    ann.hear(View({"ann": ""}, {"g1.0": Lease("ann", 9, TTL)}), 0.5, ["g1.0"])

    ann.given("g1.0", 5)

    assert ann.ask("", 1.0).release == []


@pytest.fixture
def world_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[World], None]:
    """Let the wall clock, by which epochs go, be that of a world."""

    def follow(world: World) -> None:
        monkeypatch.setattr(time, "time_ns", lambda: int(world.now * 1_000_000_000))

    return follow


@pytest.mark.parametrize("away", [0.0, 3.0, 0.8 * TTL, 1.5 * TTL])
def test_a_store_that_was_emptied_gives_nobody_what_somebody_still_trusts(
    world_clock: Callable[[World], None], away: float
) -> None:
    world = World()
    world_clock(world)
    members = [world.join(name) for name in ("ann", "bob", "eve")]
    world.go(20.0)
    had = {member.name: dict(member.consumed) for member in members}

    world.forget()
    members[2].due = world.now + away
    world.go(0.8 * TTL)

    assert members[0].consumed == had["ann"]
    assert members[1].consumed == had["bob"]
    world.go(4 * TTL)
    assert sum(world.loads().values()) == 16
    if away < TTL:
        assert {member.name: member.consumed for member in members} == had, "nothing moved"


def test_what_an_emptied_store_grants_before_that_is_known_is_released() -> None:
    ann = Ownership("ann", TTL)
    ann.hear(View({"ann": ""}, watched=5.0), 0.0, ["g1.0"])
    assert ann.ask("", 1.0).acquire == ["g1.0"]

    anew = View({"ann": ""}, {"g1.0": Lease("ann", 7, TTL)}, watched=0.0)
    orders = ann.hear(anew, 1.0, ["g1.0"])

    assert orders == ({}, [], [])
    said = ann.ask("", 1.0)
    assert (said.release, said.acquire) == ([Held("g1.0", 7)], [])
    assert ann.settling(1.0) == TTL


def test_a_lease_that_is_not_trusted_is_not_asked_for_where_the_store_forgot() -> None:
    ann = Ownership("ann", TTL)
    ann.hear(View({"ann": ""}, watched=5.0), 0.0, ["g1.0"])
    ann.ask("", 0.5)
    mine = View({"ann": ""}, {"g1.0": Lease("ann", 5, TTL)}, watched=5.5)
    ann.hear(mine, 0.5, ["g1.0"])

    ann.forgotten()

    late = ann.ask("", 2 * TTL)
    assert (late.renew, late.acquire) == ([], [])
    free = View({"ann": ""}, watched=6.0)
    assert ann.hear(free, 2 * TTL, ["g1.0"]).lost == ["g1.0"]
    assert ann.ask("", 2 * TTL + 1.0).acquire == [], "it may be another's"
    ann.hear(free, 3 * TTL, ["g1.0"])
    assert ann.ask("", 3 * TTL + 1.0).acquire == ["g1.0"]


def test_what_was_not_renewed_while_the_store_settles_is_not_trusted_anew(
    world_clock: Callable[[World], None],
) -> None:
    world = World()
    world_clock(world)
    ann, _ = world.join("ann"), world.join("bob")
    world.go(20.0)

    world.forget()
    until_all_know(world)
    ann.due = float("inf")
    world.go(0.9 * TTL)  # away for longer than it may trust, and shorter than its leases last
    ann.round("")
    world.join("eve")
    world.go(2 * TTL)  # and away again
    ann.due = world.now
    world.go(2 * TTL)

    assert sorted(world.loads().values()) == [5, 5, 6]


def test_what_is_not_renewed_while_the_store_settles_is_lost_and_released() -> None:
    ann = Ownership("ann", TTL)
    ann.hear(View({"ann": ""}, watched=5.0), 0.0, ["g1.0"])
    ann.ask("", 0.5)
    ann.hear(View({"ann": ""}, {"g1.0": Lease("ann", 5, TTL)}, watched=5.5), 0.5, ["g1.0"])
    ann.forgotten()
    ann.ask("", 1.0)
    ann.hear(View({"ann": ""}, {"g1.0": Lease("ann", 5, TTL)}, watched=0.0), 1.0, ["g1.0"])

    late = ann.ask("", 10.0)
    assert (late.renew, late.acquire) == ([], [])
    left = View({"ann": ""}, {"g1.0": Lease("ann", 5, 1.0)}, watched=9.0)

    assert ann.hear(left, 10.0, ["g1.0"]) == ({}, [], ["g1.0"])
    assert ann.ask("", 10.1).release == [Held("g1.0", 5)]


def test_what_a_store_that_went_back_says_was_kept_is_lost_where_it_was_not_trusted() -> None:
    """Somebody else may have owned it since that state of the store."""
    ann = Ownership("ann", TTL)
    ann.hear(View({"ann": ""}, watched=5.0), 0.0, ["g1.0"])
    ann.ask("", 0.5)
    mine = {"g1.0": Lease("ann", 5, TTL)}
    ann.hear(View({"ann": ""}, mine, watched=5.5), 0.5, ["g1.0"])

    assert ann.ask("", 2 * TTL).acquire == ["g1.0"]
    orders = ann.hear(View({"ann": ""}, mine, watched=5.0), 2 * TTL, ["g1.0"])

    assert orders == ({}, [], ["g1.0"])
    assert ann.ask("", 2 * TTL).release == [Held("g1.0", 5)]


def until_all_know(world: World) -> None:
    """Go on until everybody knows that the store forgot, and said what is its own."""
    while not all(member.ownership.settling(world.now) for member in world.members):
        world.go(0.05)
    for member in world.members:
        member.round("")


def test_a_shard_that_nobody_is_able_to_have_stays_where_it_is() -> None:
    store = MemoryLeases(LeaseOptions(ttl=TTL))
    ann = Ownership("ann", TTL, is_able=lambda facts: facts == "able")
    ann.hear(store.sync("bank", ann.ask("able")), 0.0, SHARDS)
    ann.hear(store.sync("bank", ann.ask("able")), 1.0, SHARDS)
    assert len(ann.grants) == 16
    for second in range(2, 6):
        orders = ann.hear(store.sync("bank", ann.ask("unable")), second, SHARDS)
        assert orders == ({}, [], [])


@pytest.mark.parametrize("seed", range(30))
def test_there_are_never_two_owners_whatever_fails(
    world_clock: Callable[[World], None], seed: int
) -> None:
    world = World(seed)
    world_clock(world)
    # Who never heard of the store before it was emptied, because it comes right after or because
    # its first calls failed, cannot know it (a limit that docs/shards.md names).
    emptied = -TTL
    random, number = world.random, 3
    for name in ("ann", "bob", "eve"):
        world.join(name)
    for _ in range(25):
        world.go(random.uniform(0.2, 6.0), faults=True)
        event, member = random.random(), random.choice(world.members)
        if event < 0.2 and len(world.members) > 1:
            member.die()
        elif event < 0.4 and len(world.members) < 6 and world.now > emptied + 2 * TTL:
            world.join(f"member-{(number := number + 1)}")
        elif event < 0.7:  # it sleeps, perhaps longer than its leases live
            member.due = world.now + random.choice([random.uniform(0.0, 2.0), LATE]) * TTL
        elif event < 0.8 and len(world.members) > 1:
            for name in member.ownership.leave():
                member.giving[name] = world.now + random.uniform(0.0, 3.0)
        elif (
            event > 0.95
            and world.now > emptied + 2 * TTL
            and all(member.heard for member in world.members)
        ):
            world.forget()
            emptied = world.now
        world.members = [m for m in world.members if not m.ownership.gone]
        if all(m.ownership._leaving for m in world.members):
            world.go(emptied + 2 * TTL - world.now, faults=True)
            world.join(f"member-{(number := number + 1)}")
    world.go(4 * TTL)  # the faults end

    staying = [m.name for m in world.members if not m.ownership._leaving]
    loads = world.loads()
    assert sum(loads.values()) == 16
    assert {loads[name] for name in staying} <= {16 // len(staying), -(-16 // len(staying))}
