"""Shards between the processes of one supervisor: one process each, and never two at a time.

The processes are fakes at the other end of a pipe: what they are told arrives later, and so does
what they answer. A state machine lets everything cross that can.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from worker.sharding.generations import Generation, Plan
from worker.supervisor.dealer import Dealer

SHARDS = 6
ENOUGH = 200


class Process:
    """A process as its supervisor sees it, and what it really has."""

    def __init__(self, index: int, *, generation: int = 1) -> None:
        self.pid = id(self)
        self.index = index
        self.generation = generation
        self.statistics: Mapping[str, object] = {}
        self.shards: dict[int, int] = {}
        self.giving: set[int] = set()
        self.opening = False
        self.dismissed = False
        self.told = 1
        #: What was said and has not arrived, both ways; and all that was said to it.
        self.pipe: deque[tuple[str, Any]] = deque()
        self.answers: deque[tuple[str, Any]] = deque()
        self.said: list[str] = []
        #: The process itself.
        self.has: dict[int, int] = {}
        self.finishing: set[int] = set()
        self.trusted_until = float("inf")

    @property
    def serves(self) -> bool:
        return not (self.opening or self.dismissed)

    def open(self, plan: Plan, version: int, trusted_until: float) -> None:
        assert not self.shards
        self.told = version
        self.opening = True
        self._say("open", plan.consumed.number)

    def take(self, fences: Mapping[int, int], trusted_until: float) -> None:
        assert not self.shards.keys() & fences.keys(), "it was told to take that before"
        self.shards.update(fences)
        self._say("take", (dict(fences), trusted_until))

    def give(self, shards: Sequence[int]) -> None:
        assert not self.giving & {*shards}, "it was told to give that before"
        self.giving.update(shards)
        self._say("give", [*shards])

    def lose(self, shards: Sequence[int]) -> None:
        self.giving.update(shards)
        self._say("lose", [*shards])

    def trust(self, until: float) -> None:
        self.pipe.append(("trust", until))

    def _say(self, kind: str, about: Any) -> None:
        self.said.append(kind)
        self.pipe.append((kind, about))

    # -- the process itself

    def hear(self, now: float) -> None:
        """Act on the next thing that it was told."""
        kind, about = self.pipe.popleft()
        match kind:
            case "open":
                assert not self.has
                self.answers.append(("ready", about))
            case "take":
                fences, self.trusted_until = about
                assert not self.has.keys() & fences.keys()
                if now > self.trusted_until:
                    self.answers.append(("given", [*fences]))
                else:
                    self.has.update(fences)
            case "trust":
                self.trusted_until = about
            case _:
                self.finishing.update(shard for shard in about if shard in self.has)

    def lapse(self, now: float) -> None:
        """Give up what may no longer be trusted."""
        if now > self.trusted_until:
            self.finishing.update(self.has)

    def finish(self) -> None:
        """Nothing of what it gives up runs any more."""
        if self.finishing:
            self.answers.append(("given", sorted(self.finishing)))
            for shard in self.finishing:
                del self.has[shard]
            self.finishing = set()

    def answer(self) -> None:
        """Let the next of its answers arrive."""
        kind, about = self.answers.popleft()
        if kind == "ready":
            self.generation, self.opening = about, False
            return
        for shard in about:
            self.shards.pop(shard, None)
            self.giving.discard(shard)


class Table:
    """A dealer with its processes, where nothing is slow."""

    def __init__(self, processes: int, shards: int = SHARDS, *, single: bool = False) -> None:
        self.given: list[str] = []
        self.dealer = Dealer(lambda name, _epoch: self.given.append(name))
        self.plan = Plan(Generation(1, shards), single_active=single)
        self.dealer.follow(self.plan, 1)
        self.hands = [Process(index) for index in range(processes)]
        self.now = 0.0
        self.dealer.trust(10.0, self.hands)

    def own(self, *names: str, epoch: int = 1) -> None:
        self.dealer.hear(dict.fromkeys(names, epoch), ())

    def own_all(self) -> None:
        self.own(*self.plan.consumed.leases)

    def deal(self, places: int | None = None) -> None:
        number = len(self.hands) if places is None else places
        self.dealer.deal(self.hands, range(number), self.now)

    def go_on(self, places: int | None = None) -> None:
        """Deal until nothing moves any more."""
        for _ in range(ENOUGH):
            self.deal(places)
            if not any(hand.pipe or hand.answers or hand.finishing for hand in self.hands):
                return
            for hand in self.hands:
                while hand.pipe:
                    hand.hear(self.now)
                hand.finish()
                while hand.answers:
                    hand.answer()
        raise AssertionError("there is no end to it")

    @property
    def had(self) -> list[list[int]]:
        return [sorted(hand.has) for hand in self.hands]


def test_every_shard_goes_to_one_process_and_nobody_gets_two_more_than_another() -> None:
    table = Table(4)
    table.own_all()
    table.go_on()

    assert sorted(shard for own in table.had for shard in own) == [*range(SHARDS)]
    assert sorted(map(len, table.had)) == [1, 1, 2, 2]
    assert table.dealer.settled(table.hands)


def test_only_what_is_owned_is_dealt_with_its_epoch_as_the_fence() -> None:
    table = Table(2)
    table.own("g1.2", epoch=17)
    table.own("g1.5", epoch=18)
    table.own("reshard", epoch=19)
    table.go_on()

    assert {**table.hands[0].has, **table.hands[1].has} == {2: 17, 5: 18}


def test_a_process_more_gets_its_share_of_the_others_and_leaves_them_the_rest() -> None:
    table = Table(2)
    table.own_all()
    table.go_on()
    before = table.had
    table.hands.append(Process(2))
    table.go_on()

    assert list(map(len, table.had)) == [2, 2, 2]
    assert all(set(now) <= set(then) for now, then in zip(table.had, before, strict=False))
    assert table.hands[0].said == table.hands[1].said == ["take", "give"]


def test_a_shard_is_taken_by_nobody_before_it_was_given() -> None:
    table = Table(1)
    table.own_all()
    table.go_on()
    table.hands.append(Process(1))
    for _ in range(3):
        table.deal()

    assert table.hands[0].said == ["take", "give"], "and it is told so once"
    assert table.hands[1].said == []
    assert not table.dealer.settled(table.hands)
    while table.hands[0].pipe:
        table.hands[0].hear(0.0)
    table.deal()
    assert table.hands[1].said == []
    table.hands[0].finish()
    table.hands[0].answer()
    table.deal()
    assert table.hands[1].said == ["take"]


def test_who_replaces_a_process_gets_what_that_had() -> None:
    table = Table(3)
    table.own_all()
    table.go_on()
    before = table.had

    table.hands[1].dismissed = True
    table.deal()
    assert table.had == before, "who drains keeps what it has until its end"
    table.hands[1] = Process(1)
    table.go_on()

    assert table.had == before
    assert table.hands[0].said == table.hands[2].said == ["take"]


def test_a_place_without_a_process_is_waited_for() -> None:
    table = Table(2)
    table.own_all()
    table.go_on()
    (first, second) = table.had
    table.hands = [table.hands[0]]
    table.go_on(places=2)
    assert table.had == [first]

    table.go_on(places=1)
    assert table.had == [sorted(first + second)]


def test_a_lease_goes_back_when_nobody_has_anything_of_it() -> None:
    table = Table(2)
    table.own_all()
    table.go_on()
    table.dealer.hear({}, ["g1.0", "g1.3"])
    table.deal()
    assert table.given == []

    table.go_on()

    assert sorted(table.given) == ["g1.0", "g1.3"]
    assert sorted(shard for own in table.had for shard in own) == [1, 2, 4, 5]
    assert table.dealer.owned.keys() == {"g1.1", "g1.2", "g1.4", "g1.5"}


def test_the_one_lease_of_a_service_covers_all_shards() -> None:
    table = Table(1, single=True)
    table.own("g1", epoch=17)
    table.go_on()
    assert table.hands[0].has == dict.fromkeys(range(SHARDS), 17)

    table.dealer.hear({}, ["g1"])
    table.deal()
    (hand,) = table.hands
    hand.pipe.clear()
    hand.answers.append(("given", [0, 1, 2, 3, 4]))
    hand.answer()
    table.deal()
    assert table.given == [], "one is left"
    hand.answers.append(("given", [5]))
    hand.answer()
    table.deal()
    assert table.given == ["g1"]


def test_what_one_lease_covers_is_in_one_process_at_a_time() -> None:
    table = Table(1, single=True)
    table.own("g1", epoch=17)
    table.go_on(places=1)
    (old,) = table.hands
    old.dismissed = True
    new = Process(0)
    table.hands.append(new)

    old.answers.append(("given", [*range(SHARDS - 1)]))
    old.answer()
    table.deal(places=1)
    assert new.said == [], "one shard is left in the other"
    old.answers.append(("given", [SHARDS - 1]))
    old.answer()
    table.deal(places=1)
    assert new.shards == dict.fromkeys(range(SHARDS), 17)
    table.dealer.paused = lambda shard: shard == 3
    table.hands.remove(old)
    table.go_on(places=1)
    table.dealer.paused = lambda _: False
    table.go_on(places=1)
    assert new.has == dict.fromkeys(range(SHARDS), 17), "who has the rest may have all"


def test_a_lease_that_nobody_consumes_yet_goes_back_at_once() -> None:
    table = Table(0)
    table.own("g1.0", "reshard")
    table.dealer.hear({}, ["g1.0", "reshard"])
    table.deal(places=2)

    assert sorted(table.given) == ["g1.0", "reshard"]


def test_what_is_lost_is_told_at_once_and_taken_again_under_its_new_fence_alone() -> None:
    table = Table(1, shards=1)
    table.own_all()
    table.go_on()

    table.dealer.lose(["g1.0"], table.hands)
    table.own("g1.0", epoch=2)
    table.deal()
    assert table.hands[0].said == ["take", "lose"]
    table.go_on()

    assert table.hands[0].has == {0: 2}
    assert table.hands[0].said == ["take", "lose", "take"]
    assert table.given == []


def test_nothing_is_taken_on_leases_that_may_have_run_out() -> None:
    table = Table(1)
    table.own_all()
    table.now = 10.0
    table.deal()
    assert table.hands[0].said == []

    table.dealer.trust(20.0, table.hands)
    table.go_on()
    assert len(table.hands[0].has) == SHARDS


def test_a_paused_shard_is_in_no_process_and_its_lease_stays() -> None:
    table = Table(2)
    table.own_all()
    table.go_on()
    table.dealer.paused = lambda shard: shard == 3
    table.go_on()

    assert sorted(shard for own in table.had for shard in own) == [0, 1, 2, 4, 5]
    assert table.given == []
    assert table.dealer.settled(table.hands)

    table.dealer.paused = lambda _: False
    table.go_on()
    assert sorted(shard for own in table.had for shard in own) == [*range(SHARDS)]


def test_who_was_not_told_the_plan_of_now_is_not_trusted() -> None:
    table = Table(2, shards=2)
    table.hands[1].told = 0

    table.dealer.trust(99.0, table.hands)

    assert [("trust", 99.0) in hand.pipe for hand in table.hands] == [True, False]


def test_a_process_goes_over_to_another_generation_when_it_has_nothing_of_the_one_before() -> None:
    table = Table(2, shards=2)
    table.own_all()
    table.go_on()
    plan = Plan(Generation(2, 4))

    table.dealer.follow(plan, 2)
    table.dealer.hear(dict.fromkeys(plan.consumed.leases, 5), ["g1.0", "g1.1"])
    table.deal()
    assert [hand.said for hand in table.hands] == [["take", "give"]] * 2
    table.go_on()

    assert sorted(table.given) == ["g1.0", "g1.1"]
    assert [hand.said for hand in table.hands] == [["take", "give", "open", "take"]] * 2
    assert sorted(shard for own in table.had for shard in own) == [0, 1, 2, 3]
    assert {fence for hand in table.hands for fence in hand.has.values()} == {5}


def test_nobody_connects_by_a_plan_that_may_be_an_old_one() -> None:
    table = Table(1)
    table.hands[0].generation = 0
    table.now = 10.0
    table.deal()
    assert table.hands[0].said == []

    table.dealer.trust(20.0, table.hands)
    table.deal()
    assert table.hands[0].said == ["open"]


def test_facts_tell_who_has_what() -> None:
    table = Table(1, shards=2)
    table.own_all()
    table.go_on()
    (hand,) = table.hands
    hand.statistics = {"shards": {"1": {"waiting": 3}}}

    assert table.dealer.facts(table.hands) == {
        "g1.0": {"pid": hand.pid},
        "g1.1": {"pid": hand.pid, "waiting": 3},
    }


@pytest.mark.parametrize("statistics", [{}, {"shards": None}, {"shards": []}, {"drained": 4}])
def test_facts_are_told_of_processes_that_tell_nothing(statistics: dict[str, Any]) -> None:
    table = Table(1, shards=1)
    table.own_all()
    table.go_on()
    table.hands[0].statistics = statistics

    assert table.dealer.facts(table.hands).keys() == {"g1.0"}
    assert table.dealer.drained(table.hands) == []


class DealerMachine(RuleBasedStateMachine):
    """Leases come, go and are lost, processes begin, drain and die, and messages cross."""

    def __init__(self) -> None:
        super().__init__()
        self.dealer = Dealer(lambda name, _epoch: self.lease_is_given(name))
        self.plan = Plan(Generation(1, SHARDS))
        self.dealer.follow(self.plan, 1)
        self.version = 1
        self.places = 2
        self.hands: list[Process] = []
        self.now = 0.0
        self.epoch = 0
        #: What the lease store says is ours: by name, the epoch, and whether it is asked back.
        self.owned: dict[str, int] = {}
        self.asked_back: set[str] = set()
        self.fences: dict[tuple[int, int], int] = {}
        self.dealer.trust(10.0, self.hands)

    def lease_is_given(self, name: str) -> None:
        assert name in self.asked_back, f"nobody asked for {name}"
        for hand in self.hands:
            for shard in self.shards_of(hand, name):
                assert shard not in hand.has, f"{name} was given while {hand.index} had {shard}"
                assert shard not in hand.shards
        self.asked_back.discard(name)
        self.owned.pop(name, None)

    def shards_of(self, hand: Process, name: str) -> range:
        shards = SHARDS if hand.generation == 1 else 2 * SHARDS
        return Generation(hand.generation, shards).shards_of(name)

    def deal(self) -> None:
        self.dealer.deal(self.hands, range(self.places), self.now)

    # -- leases ------------------------------------------------------------------------------------

    @rule(number=st.integers(0, 2 * SHARDS - 1))
    def a_lease_is_granted(self, number: int) -> None:
        name = f"{self.plan.consumed.lease}.{number % self.plan.consumed.shards}"
        if name not in self.owned:
            self.epoch += 1
            self.owned[name] = self.epoch
            self.dealer.hear({name: self.epoch}, ())
            self.deal()

    @precondition(lambda self: self.owned.keys() - self.asked_back)
    @rule(data=st.data())
    def a_lease_is_asked_back(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.owned.keys() - self.asked_back)))
        self.asked_back.add(name)
        self.dealer.hear({}, [name])
        self.deal()

    @precondition(lambda self: self.owned)
    @rule(data=st.data(), again=st.booleans())
    def a_lease_is_lost(self, data: st.DataObject, again: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.owned)))
        del self.owned[name]
        self.asked_back.discard(name)
        self.dealer.lose([name], self.hands)
        if again:
            self.epoch += 1
            self.owned[name] = self.epoch
            self.dealer.hear({name: self.epoch}, ())
        self.deal()

    @rule(seconds=st.sampled_from((1.0, 5.0, 11.0)))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        for hand in self.hands:
            hand.lapse(self.now)
        self.deal()

    @rule()
    def leases_are_renewed(self) -> None:
        self.dealer.trust(self.now + 10.0, self.hands)
        self.deal()

    @precondition(lambda self: self.plan.consumed.number == 1)
    @rule()
    def the_service_goes_over_to_another_generation(self) -> None:
        self.plan, self.version = Plan(Generation(2, 2 * SHARDS)), 2
        self.dealer.follow(self.plan, self.version)
        old = sorted(self.owned.keys() - self.asked_back)
        self.asked_back.update(old)
        self.dealer.hear({}, old)
        self.deal()

    # -- processes ---------------------------------------------------------------------------------

    @rule(places=st.integers(1, 4))
    def another_number_of_processes_is_asked_for(self, places: int) -> None:
        self.places = places
        for hand in self.hands:
            hand.dismissed = hand.dismissed or hand.index >= places
        self.deal()

    @rule(data=st.data())
    def a_process_begins(self, data: st.DataObject) -> None:
        free = sorted({*range(self.places)} - {hand.index for hand in self.hands})
        if free:
            generation = data.draw(st.sampled_from((0, self.plan.consumed.number)))
            self.hands.append(Process(data.draw(st.sampled_from(free)), generation=generation))
            self.deal()

    @precondition(lambda self: self.hands)
    @rule(data=st.data(), dies=st.booleans())
    def a_process_drains_or_dies(self, data: st.DataObject, dies: bool) -> None:
        hand = data.draw(st.sampled_from(self.hands))
        hand.dismissed = True
        if dies:
            self.hands.remove(hand)
        self.deal()

    # -- the pipes ---------------------------------------------------------------------------------

    @precondition(lambda self: any(hand.pipe for hand in self.hands))
    @rule(data=st.data())
    def a_process_hears(self, data: st.DataObject) -> None:
        hand = data.draw(st.sampled_from([hand for hand in self.hands if hand.pipe]))
        self.hear(hand)

    def hear(self, hand: Process) -> None:
        before = dict(hand.has)
        hand.hear(self.now)
        for shard in hand.has.keys() - before.keys():
            others = [other for other in self.hands if other is not hand and shard in other.has]
            assert not [o for o in others if o.generation == hand.generation], "two have it"
            fence = self.fences.get((hand.generation, shard), 0)
            assert hand.has[shard] >= fence, "the fence fell"
            self.fences[hand.generation, shard] = hand.has[shard]

    @precondition(lambda self: any(hand.finishing for hand in self.hands))
    @rule(data=st.data())
    def a_process_finishes_what_it_gives(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from([hand for hand in self.hands if hand.finishing])).finish()

    @precondition(lambda self: any(hand.answers for hand in self.hands))
    @rule(data=st.data())
    def an_answer_comes(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from([hand for hand in self.hands if hand.answers])).answer()
        self.deal()

    # -- what must hold ----------------------------------------------------------------------------

    @invariant()
    def no_shard_is_told_to_two(self) -> None:
        told = Counter((hand.generation, shard) for hand in self.hands for shard in hand.shards)
        assert all(number == 1 for number in told.values()), told

    @invariant()
    def nobody_has_what_is_not_known_of_it(self) -> None:
        for hand in self.hands:
            assert hand.has.keys() <= hand.shards.keys()

    def teardown(self) -> None:
        """Once nothing disturbs it, every shard comes to rest, where it should be."""
        self.now += 1.0
        self.hands = [hand for hand in self.hands if not hand.dismissed]
        missing = {*range(self.places)} - {hand.index for hand in self.hands}
        self.hands += [Process(index, generation=0) for index in sorted(missing)]
        self.dealer.trust(self.now + 10.0, self.hands)
        said = Counter({hand: -len(hand.said) for hand in self.hands})
        for _ in range(ENOUGH):
            self.deal()
            if not any(hand.pipe or hand.answers or hand.finishing for hand in self.hands):
                break
            for hand in self.hands:
                while hand.pipe:
                    self.hear(hand)
                hand.finish()
                while hand.answers:
                    hand.answer()
        else:
            raise AssertionError("there is no end to it")
        said.update({hand: len(hand.said) for hand in self.hands})
        assert max(said.values(), default=0) <= 8, "it goes back and forth"
        assert self.asked_back == set()
        had = {shard: fence for hand in self.hands for shard, fence in hand.has.items()}
        consumed = self.plan.consumed
        assert had == {s: e for name, e in self.owned.items() for s in consumed.shards_of(name)}
        sizes = [len(hand.has) for hand in self.hands]
        assert max(sizes) - min(sizes) <= 1
        assert self.dealer.settled(self.hands)


DealerMachine.TestCase.settings = settings(
    max_examples=150, stateful_step_count=60, deadline=None, derandomize=True
)
TestDealing = DealerMachine.TestCase
