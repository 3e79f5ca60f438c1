"""What is paused, carried out by a supervisor: what its processes are told, and when it is done."""

from __future__ import annotations

from typing import Any

import pytest

from worker.sharding.generations import Generation, Plan
from worker.sharding.pauses import PAUSED, Pauses
from worker.supervisor.control import Pause, Paused, decode, encode
from worker.supervisor.dealer import Dealer
from worker.supervisor.pausing import Pausing

EPOCH = 1000


class Hand:
    """A process that does at once what it is told, unless it is busy."""

    pid, index, generation = 4711, 0, 1
    serves, ready_at = True, 1.0

    def __init__(self) -> None:
        self.shards: dict[int, int] = {}
        self.giving: set[int] = set()
        self.paused = 0
        self.is_busy = False
        self.statistics: dict[str, object] = {}
        self.told: list[Pause] = []

    def take(self, fences: dict[int, int], trusted_until: float) -> None:
        self.shards |= fences

    def give(self, shards: list[int]) -> None:
        self.giving.update(shards)
        if not self.is_busy:
            self.finish()

    def finish(self) -> None:
        for shard in self.giving:
            del self.shards[shard]
        self.giving.clear()
        if self.told:
            self.paused = self.told[-1].version

    def say(self, pause: Pause) -> None:
        self.told.append(pause)
        if not self.is_busy:
            self.paused = pause.version

    def trust(self, until: float) -> None: ...


class Fleet:
    """A fleet of one process."""

    def __init__(self) -> None:
        self.given: list[str] = []
        self.dealer = Dealer(lambda name, _epoch: self.given.append(name))
        self.hand = Hand()

    def children(self) -> list[Hand]:
        return [self.hand]

    def pause(self, pause: Pause) -> None:
        self.hand.say(pause)

    def deal(self) -> None:
        hands: Any = self.children()
        self.dealer.deal(hands, range(1), 0.0)


@pytest.fixture
def fleet() -> Fleet:
    """Four shards, of which all are owned and consumed here."""
    fleet = Fleet()
    plan = Plan(Generation(1, 4))
    fleet.dealer.follow(plan, 1)
    fleet.dealer.hear(dict.fromkeys(plan.current.leases, EPOCH), ())
    fleet.dealer.trust(10.0, [])
    return fleet


@pytest.fixture
def pausing(fleet: Fleet) -> Pausing:
    pausing = Pausing(fleet)  # type: ignore[arg-type] # what it uses of one
    fleet.deal()
    assert [*fleet.hand.shards] == [0, 1, 2, 3]
    return pausing


def hear(pausing: Pausing, version: int, pauses: Pauses) -> list[tuple[str, int, str]]:
    """Tell what the store knows; return what is written to it."""
    written: list[tuple[str, int, str]] = []
    pausing.hear((version, pauses) if version else None, lambda *what: written.append(what))
    return written


def test_a_paused_shard_is_given_and_its_lease_is_kept(fleet: Fleet, pausing: Pausing) -> None:
    hear(pausing, 1, Pauses().paused(1, shards=[2]))
    assert pausing.carried_out() == 0, "it is still consumed"
    fleet.deal()

    assert [*fleet.hand.shards] == [0, 1, 3]
    assert pausing.carried_out() == 1
    assert fleet.given == []
    hear(pausing, 2, Pauses())
    fleet.deal()
    assert fleet.hand.shards == dict.fromkeys(range(4), EPOCH), "the fence is the same"
    assert pausing.carried_out() == 2


def test_of_one_lease_on_all_shards_some_can_be_paused(fleet: Fleet) -> None:
    plan = Plan(Generation(2, 4), single_active=True)
    fleet.dealer.follow(plan, 2)
    fleet.dealer.owned = {plan.current.lease: EPOCH}
    fleet.hand.generation = 2
    pausing = Pausing(fleet)  # type: ignore[arg-type] # what it uses of one
    fleet.deal()
    assert len(fleet.hand.shards) == 4
    hear(pausing, 1, Pauses().paused(2, shards=[0, 2]))
    fleet.deal()

    assert fleet.hand.shards == {1: EPOCH, 3: EPOCH}
    assert pausing.carried_out() == 1
    assert fleet.given == []


def test_it_is_carried_out_when_nothing_runs_any_more(fleet: Fleet, pausing: Pausing) -> None:
    fleet.hand.is_busy = True
    hear(pausing, 1, Pauses().paused(1, shards=[2], handlers=["mail"]))
    fleet.deal()
    assert fleet.hand.told == [Pause(("mail",), 1)]
    assert pausing.carried_out() == 0

    fleet.hand.finish()
    assert pausing.carried_out() == 1


def test_a_version_is_told_once(fleet: Fleet, pausing: Pausing) -> None:
    for _ in range(3):
        hear(pausing, 1, Pauses().paused(1, handlers=["mail"]))

    assert len(fleet.hand.told) == 1


def test_a_store_that_forgot_is_told_again(pausing: Pausing) -> None:
    paused = Pauses().paused(1)
    assert hear(pausing, 0, Pauses()) == []
    hear(pausing, 4, paused)

    assert hear(pausing, 0, Pauses()) == [(PAUSED, 0, paused.dump())]
    assert pausing.pauses == paused
    hear(pausing, 1, paused)
    assert hear(pausing, 1, paused) == []


def test_versions_that_began_anew_are_carried_out_anew(fleet: Fleet, pausing: Pausing) -> None:
    """``qworker pause`` waits for version 1 of a document that was at 5 before the store forgot."""
    hear(pausing, 5, Pauses())
    assert pausing.carried_out() == 5

    assert hear(pausing, 0, Pauses()) == []
    assert pausing.carried_out() == 0
    fleet.hand.is_busy = True
    hear(pausing, 1, Pauses().paused(1))
    fleet.deal()
    assert pausing.carried_out() == 0, "all of it still runs"

    fleet.hand.finish()
    assert pausing.carried_out() == 1


def test_an_answer_from_before_says_nothing_of_the_same_version_now(
    fleet: Fleet, pausing: Pausing
) -> None:
    hear(pausing, 5, Pauses())
    assert pausing.carried_out() == 5

    fleet.hand.is_busy = True
    hear(pausing, 5, Pauses().paused(1, handlers=["mail"]))
    assert pausing.carried_out() == 0
    fleet.hand.finish()
    assert pausing.carried_out() == 5


def test_a_store_that_went_back_resumes_nothing_and_is_told_again(
    fleet: Fleet, pausing: Pausing
) -> None:
    paused = Pauses().paused(1)
    hear(pausing, 5, paused)
    fleet.deal()

    assert hear(pausing, 2, Pauses()) == [(PAUSED, 2, paused.dump())]
    fleet.deal()
    assert fleet.hand.shards == {}
    assert pausing.pauses == paused

    assert hear(pausing, 3, paused) == [], "what we wrote"
    assert pausing.carried_out() == 3
    assert hear(pausing, 4, Pauses()) == [], "somebody resumed it"
    fleet.deal()
    assert len(fleet.hand.shards) == 4


def test_shards_of_another_generation_are_not_meant(fleet: Fleet, pausing: Pausing) -> None:
    hear(pausing, 1, Pauses().paused(2, shards=[2]))
    fleet.deal()

    assert [*fleet.hand.shards] == [0, 1, 2, 3]
    assert pausing.carried_out() == 1


def test_a_burst_says_what_it_leaves(fleet: Fleet, pausing: Pausing) -> None:
    hear(pausing, 1, Pauses().paused(1, handlers=["mail"]))
    assert pausing.left_over({"paused": 0.0}) == "", "nothing waits for it"
    left = pausing.left_over({"paused": 3.0, "halted": 1.0})
    assert left == "shards that are halted: 1; executions that wait for handler mail, paused: 3"
    hear(pausing, 2, Pauses().paused(1, shards=[2], handlers=["mail"]))
    assert pausing.left_over({}) == "paused: shard 2"


def test_its_messages_go_through_the_pipe() -> None:
    for message in (Pause(["mail"], 3), Paused(3)):
        assert decode(encode(message).rstrip()) == message
