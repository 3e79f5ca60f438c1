"""Who takes which step of a change of the number of shards, and when it goes on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import pytest

from worker.leases.base import View
from worker.sharding.generations import Generation, Phase, Plan
from worker.supervisor.control import Follow, Followed, Message, Step, Stepped
from worker.supervisor.dealer import Dealer, Hand
from worker.supervisor.facts import Facts
from worker.supervisor.process import ChildProcess
from worker.supervisor.resharder import Resharder
from worker.supervisor.stage import Stage

VERSION = 7
NOW = 100.0
LATER = NOW + 60.0


def plan(phase: Phase) -> Plan:
    return Plan(Generation(1, 2), Generation(2, 3), phase)


@dataclass(eq=False)
class Process:
    """As much of a child process as the resharder sees."""

    pid: int = 1
    stage: Stage = Stage.READY
    told: int = VERSION
    followed: int = VERSION
    follow_at: float = float("inf")
    trusted_until: float = 0.0
    said: list[Message] = field(default_factory=list)
    index: int = 0

    def say(self, message: Message) -> None:
        self.said.append(message)

    def trust(self, until: float) -> None:
        self.trusted_until = until

    def follow(self, _plan: Plan, version: int) -> None:
        self.told, self.follow_at = version, float("inf")
        self.said.append(Follow("", version))

    def follows(self, version: int) -> None:
        self.followed = version


class Desk:
    """A resharder and its processes."""

    def __init__(self, *processes: Process) -> None:
        self.proposed: list[tuple[int, Plan]] = []
        self.processes = list(processes)
        self.resharder = Resharder(lambda v, text: self.proposed.append((v, Plan.load(text))))

    def hear(self, phase: Phase, *members: Facts, leads: bool = True) -> None:
        facts = {str(number): member.dump() for number, member in enumerate(members)}
        self.resharder.hear(plan(phase), View(facts), VERSION, leads=leads)

    def drive(self, now: float = NOW) -> None:
        self.resharder.drive(cast("Sequence[ChildProcess]", self.processes), now)

    def steps(self) -> list[int]:
        """Return the processes that were told to take a step, once for each time."""
        return [p.pid for p in self.processes for message in p.said if isinstance(message, Step)]

    def follows(self) -> int:
        """Return how often processes were told to follow a plan."""
        return sum(isinstance(message, Follow) for p in self.processes for message in p.said)

    @property
    def phases(self) -> list[Phase | None]:
        return [proposed.phase for _, proposed in self.proposed]


def test_who_does_not_lead_takes_no_step() -> None:
    desk = Desk(Process())
    for phase in Phase:
        desk.hear(phase, Facts(followed=VERSION, drained=("g1.0", "g1.1")), leads=False)
        desk.drive()

    assert desk.steps() == []
    assert desk.proposed == []


def test_a_step_is_taken_by_one_process_and_the_next_is_proposed_once() -> None:
    desk = Desk(Process(1), Process(2))
    desk.hear(Phase.SEAL)

    desk.drive()
    desk.drive(LATER)
    assert desk.steps() == [1]

    desk.resharder.stepped(Stepped(VERSION, True), LATER)
    desk.drive(LATER)
    assert desk.steps() == [1]
    assert desk.proposed == [(VERSION, plan(Phase.SEAL).advanced())]


def test_a_step_whose_process_died_is_taken_by_another() -> None:
    desk = Desk(Process(1), Process(2))
    desk.hear(Phase.DECLARE)
    desk.drive()

    del desk.processes[0]
    desk.drive()

    assert desk.steps() == [2]


def test_a_step_that_failed_or_cannot_be_finished_is_tried_again_later() -> None:
    desk = Desk(Process(1))
    desk.hear(Phase.REMOVE)
    desk.drive()

    for answer in (Stepped(VERSION, False, "the broker is away"), Stepped(VERSION, False)):
        desk.resharder.stepped(answer, NOW)
        desk.drive(NOW)
        assert desk.proposed == []
    assert desk.steps() == [1]

    desk.drive(LATER)
    assert desk.steps() == [1, 1]


def test_a_member_whose_only_process_died_follows_with_the_next() -> None:
    desk = Desk(Process(1, followed=VERSION - 1))
    desk.hear(Phase.BIND, leads=False)

    del desk.processes[0]
    desk.drive()
    assert desk.resharder.followed != VERSION

    desk.processes.append(Process(2))
    desk.drive()
    assert desk.resharder.followed == VERSION


def test_an_answer_to_an_earlier_plan_proposes_nothing() -> None:
    desk = Desk(Process(1))
    desk.hear(Phase.REMOVE)
    desk.drive()

    desk.resharder.stepped(Stepped(VERSION - 1, True), NOW)

    assert desk.proposed == []


def test_the_old_generation_is_sealed_when_every_member_has_left_its_exchange_alone() -> None:
    desk = Desk(Process())
    behind, there = Facts(followed=VERSION - 1), Facts(followed=VERSION)

    desk.hear(Phase.BIND, there, behind)
    desk.drive()
    assert desk.proposed == []

    desk.hear(Phase.BIND, there, there)
    desk.drive()
    assert desk.phases == [Phase.SEAL]


def test_the_next_generation_is_consumed_when_every_shard_is_drained() -> None:
    desk = Desk(Process())
    first, second = Facts(drained=("g1.0",)), Facts(drained=("g1.1",))

    desk.hear(Phase.DRAIN, first, Facts(drained=("g2.1", "g0.1")))
    desk.drive()
    assert desk.proposed == []

    desk.hear(Phase.DRAIN, first, second)
    desk.drive()
    assert desk.phases == [Phase.REMOVE]


def test_the_old_queues_are_removed_when_no_member_declares_them_any_more() -> None:
    """One that is connecting by an earlier plan would bring them back."""
    opening = Process(2, Stage.OPENING, told=VERSION - 1, followed=0)
    desk = Desk(Process(1), opening)
    behind, there = Facts(followed=VERSION - 1), Facts(followed=VERSION)

    desk.hear(Phase.REMOVE, there, behind)
    desk.drive()
    desk.hear(Phase.REMOVE, there, there)
    desk.drive()
    assert desk.steps() == []

    opening.stage, opening.followed = Stage.READY, VERSION
    desk.hear(Phase.REMOVE, there, behind)
    desk.drive()
    assert desk.steps() == []

    desk.hear(Phase.REMOVE, there, there)
    desk.drive()
    assert desk.steps() == [1]


def test_who_is_gone_is_not_waited_for() -> None:
    desk = Desk(Process())
    there = Facts(followed=VERSION)
    desk.hear(Phase.REMOVE, there, Facts(followed=VERSION - 1))
    desk.drive()

    desk.hear(Phase.REMOVE, there)
    desk.drive()

    assert desk.steps() == [1]


def test_a_member_follows_when_all_its_processes_do() -> None:
    slow = Process(2, told=0, followed=0)
    desk = Desk(Process(1), slow, Process(3, Stage.BOOTING, told=0, followed=0))
    desk.hear(Phase.BIND)
    desk.drive()
    assert slow.told == VERSION
    assert desk.resharder.followed < VERSION

    slow.followed = VERSION
    desk.drive()
    assert desk.resharder.followed == VERSION


def test_a_process_that_is_connecting_by_an_earlier_plan_is_waited_for() -> None:
    opening = Process(1, Stage.OPENING, told=VERSION - 1, followed=0)
    desk = Desk(opening)
    desk.hear(Phase.BIND)
    desk.drive()

    assert opening.told == VERSION - 1
    assert desk.resharder.followed < VERSION


def test_what_a_process_could_not_declare_it_is_told_again_later() -> None:
    process = Process(told=0, followed=0)
    desk = Desk(process)
    desk.hear(Phase.BIND)
    desk.drive()

    child = cast("ChildProcess", process)
    desk.resharder.heard(child, Followed(VERSION, "the broker is away"), NOW)
    desk.drive()
    assert desk.follows() == 1
    assert desk.resharder.followed < VERSION

    desk.drive(LATER)
    desk.drive(LATER)
    assert desk.follows() == 2


def test_a_process_that_cannot_declare_the_plan_of_now_is_trusted_all_the_same() -> None:
    """It was told, so it brings back nothing of an earlier plan, and what it consumes goes on."""
    process = Process(told=0, followed=0)
    desk = Desk(process)
    desk.hear(Phase.BIND)
    desk.drive()
    dealer = Dealer(lambda _lease, _epoch: None)
    dealer.follow(plan(Phase.BIND), VERSION)

    for now in (NOW, LATER):
        answer = Followed(VERSION, "its exchange is not the service's to declare")
        desk.resharder.heard(cast("ChildProcess", process), answer, now)
        dealer.trust(now, cast("Sequence[Hand]", [process]))
        desk.drive(now)

    assert process.trusted_until == LATER


def test_a_plan_that_comes_is_told_at_once_whatever_became_of_the_one_before() -> None:
    process = Process(told=VERSION - 1, followed=VERSION - 2)
    desk = Desk(process)
    child = cast("ChildProcess", process)
    desk.resharder.heard(child, Followed(VERSION - 1, "the broker is away"), NOW)
    desk.hear(Phase.BIND)
    desk.drive(NOW)
    assert process.told == VERSION

    desk.resharder.heard(child, Followed(VERSION - 1, "the broker is away"), NOW)
    desk.drive(LATER)
    assert desk.follows() == 1, "what it could not declare is of no importance any more"


def test_a_proposal_that_came_to_nothing_is_made_again() -> None:
    desk = Desk(Process())
    desk.hear(Phase.DRAIN, Facts(drained=("g1.0", "g1.1")))
    desk.drive()
    desk.drive()
    assert desk.phases == [Phase.REMOVE]

    desk.drive(LATER)
    assert desk.phases == [Phase.REMOVE, Phase.REMOVE]


def test_a_change_is_told_as_what_it_is(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "worker.supervisor")
    past = Plan.held(4, "r1", single_active=False)
    more = Plan(Generation(1, 4)).reshard(8)

    for change in (past, more):
        resharder = Resharder(lambda _version, _text: None)
        resharder.hear(change, View(), 1, leads=False)
        resharder.hear(Plan(cast("Generation", change.target)), View(), 2, leads=False)

    assert caplog.messages == [
        "from the past to what is live: replay",
        "from the past to what is live: done, 4 shards",
        "reshard from 4 to 8 shards: declare",
        "reshard: done, 8 shards",
    ]
