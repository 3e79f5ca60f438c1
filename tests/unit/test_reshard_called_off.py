"""A change of the number of shards that is called off while the new queues are being declared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from worker.cli import main
from worker.errors import StoreCorrupt, UsageError
from worker.leases.base import Document, LeaseOptions, LeaseStore, View
from worker.leases.open import open_leases
from worker.sharding.generations import PLAN, Generation, Phase, Plan
from worker.supervisor.control import Message, Step, Stepped, Terms
from worker.supervisor.course import Course
from worker.supervisor.facts import Facts
from worker.supervisor.resharder import Resharder
from worker.supervisor.stage import Stage

FOUR = Plan(Generation(1, 4))
ASKED = FOUR.reshard(8)
OFF = ASKED.reshard(4)
NOW, LATER = 100.0, 160.0


def test_it_leads_back_to_what_there_is() -> None:
    assert (OFF.current, OFF.target, OFF.phase) == (FOUR.current, None, None)
    assert OFF.reshard(4) is OFF


@pytest.mark.parametrize("steps", range(1, len(Phase) - 1))  # a reshard has all but one
def test_it_is_too_late_once_something_may_be_bound(steps: int) -> None:
    plan = ASKED
    for _ in range(steps):
        plan = plan.advanced()

    with pytest.raises(UsageError, match=r"from 4 to 8 shards is under way, too far"):
        plan.reshard(4)


def test_who_asks_for_a_third_number_is_told_of_both_ways() -> None:
    with pytest.raises(UsageError, match=r"let it end.*--to 8.*or call it off.*--to 4.*ask again"):
        ASKED.reshard(3)


def test_no_two_changes_lead_to_the_same_generation() -> None:
    plan, numbers = Plan(Generation(7, 4)), []
    for shards in (8, 4, 8, 4, 16):
        plan = plan.reshard(shards)
        numbers += [plan.target.number] if plan.target is not None else []
    while plan.target is not None:
        plan = plan.advanced()
    plan = plan.reshard(2)
    assert plan.target is not None
    numbers.append(plan.target.number)

    assert numbers == sorted(set(numbers))
    assert numbers[0] == 8


def test_every_plan_has_more_progress_than_all_before_it() -> None:
    way = [FOUR, ASKED, OFF, OFF.reshard(8), OFF.reshard(8).reshard(4)]
    way.append(way[-1].reshard(16))
    while way[-1].target is not None:
        way.append(way[-1].advanced())
    way += [way[-1].reshard(4), way[-1].reshard(4).reshard(16)]

    told = [plan.progress for plan in way]
    assert told == sorted(set(told))
    found = Plan.found([Generation(1, 4), Generation(2, 8)], single_active=False)
    assert found.progress > OFF.reshard(8).progress, "what is bound is not what was asked for once"


def test_a_plan_without_a_revision_is_no_plan() -> None:
    assert Plan.load(OFF.dump()) == OFF
    with pytest.raises(StoreCorrupt, match="no plan"):
        Plan.load(OFF.dump().replace(f',"revision":{OFF.revision}', ""))


TERMS = Terms(
    service="bank",
    queues="bank",
    shards=8,
    processes=1,
    most_processes=4,
    drain_timeout=10.0,
    watchdog=5.0,
    connect_timeout=5.0,
)


def knowing(plan: Plan, version: int) -> View:
    return View(members={"ann": ""}, documents={PLAN: Document(version, plan.dump())})


@pytest.mark.parametrize("shards", [4, 8])
def test_members_that_went_by_the_change_do_not_write_it_back(shards: int) -> None:
    course = Course(replace(TERMS, shards=shards), "ann")
    assert course.follow(knowing(ASKED, 2)) == ASKED

    assert course.follow(knowing(OFF, 3)) == OFF
    again = OFF.reshard(16)
    assert course.follow(knowing(again, 4)) == again


@dataclass(eq=False)
class Process:
    """As much of a child process as the resharder sees."""

    pid: int = 1
    stage: Stage = Stage.READY
    told: int = 0
    followed: int = 0
    follow_at: float = 0.0
    said: list[Message] = field(default_factory=list)

    def say(self, message: Message) -> None:
        self.said.append(message)

    def follow(self, _plan: Plan, version: int) -> None:
        self.told = self.followed = version


class Leader:
    """A member that leads, on a store in which others write too."""

    def __init__(self, store: LeaseStore) -> None:
        self.store = store
        self.process = Process()
        self.resharder = Resharder(lambda v, text: self.wrote.append(self.write(v, text)))
        #: Of each proposal, whether it came to something.
        self.wrote: list[bool] = []

    def write(self, version: int, text: str) -> bool:
        return self.store.write("bank", PLAN, version, text)

    def look(self, now: float) -> None:
        """Hear what the store says, and act on it."""
        version, text = self.store.look("bank").documents[PLAN]
        plan, facts = Plan.load(text), Facts(followed=self.resharder.followed)
        view = View({"ann": facts.dump()})
        self.resharder.hear(plan, view, version, leads=plan.target is not None)
        children: Any = [self.process]
        self.resharder.drive(children, now)

    @property
    def declared(self) -> list[int]:
        """The generations that its process was told to declare, once for each time."""
        told = [Plan.load(m.plan) for m in self.process.said if isinstance(m, Step)]
        return [plan.target.number for plan in told if plan.target is not None]


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A lease store in which the change was asked for."""
    return f"sqlite:///{tmp_path}/leases.db"


@pytest.fixture
def store(url: str) -> Iterator[LeaseStore]:
    store = open_leases(url, LeaseOptions())
    assert store.write("bank", PLAN, 0, FOUR.dump())
    assert store.write("bank", PLAN, 1, ASKED.dump())
    yield store
    store.close()


@pytest.fixture
def leader(store: LeaseStore) -> Leader:
    leader = Leader(store)
    leader.look(NOW)
    assert leader.declared == [2]
    return leader


def test_a_leader_that_is_declaring_stops(
    leader: Leader, store: LeaseStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    leader.resharder.stepped(Stepped(2, False, "DeclarationMismatch: bank.g2.0"), NOW)
    leader.look(NOW + 3.0)
    assert leader.declared == [2, 2], "again and again"

    assert leader.write(2, OFF.dump())
    leader.look(NOW + 4.0)
    leader.resharder.stepped(Stepped(2, False, "DeclarationMismatch: bank.g2.0"), NOW + 4.0)
    leader.look(LATER)

    assert leader.declared == [2, 2]
    assert "reshard: called off, 4 shards" in caplog.text
    assert "done" not in caplog.text


@pytest.mark.parametrize("hears_first", [True, False])
def test_what_a_leader_has_declared_by_then_leads_nowhere(
    leader: Leader, store: LeaseStore, hears_first: bool
) -> None:
    assert leader.write(2, OFF.dump())
    if hears_first:
        leader.look(NOW + 1.0)

    leader.resharder.stepped(Stepped(2, True), NOW + 1.0)
    leader.look(NOW + 1.0)
    leader.look(LATER)

    assert leader.wrote == ([] if hears_first else [False])
    assert Plan.load(store.look("bank").documents[PLAN].text) == OFF


def test_the_next_change_declares_other_queues_whatever_the_last_one_still_says(
    leader: Leader, store: LeaseStore
) -> None:
    assert leader.write(2, OFF.dump())
    assert leader.write(3, OFF.reshard(8).dump())
    leader.look(NOW + 1.0)
    assert leader.declared == [2, 4]

    leader.resharder.stepped(Stepped(2, True), NOW + 1.0)
    assert leader.wrote == []
    leader.resharder.stepped(Stepped(4, True), NOW + 1.0)
    leader.look(NOW + 1.0)

    plan = Plan.load(store.look("bank").documents[PLAN].text)
    assert (plan.phase, plan.target) == (Phase.BIND, Generation(4, 8))


@pytest.mark.parametrize(
    ("broker", "advice"),
    [
        ("amqp://127.0.0.1:1//", "remove bank.g2 and bank.g2.* from the broker"),
        ("sqlite:///broker.db", "let bank.g2 and bank.g2.* be"),
    ],
)
def test_the_command_calls_it_off_and_says_what_stays(
    broker: str, advice: str, url: str, store: LeaseStore, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["--broker", broker, "--leases", url]
    code = main(["reshard", "--service", "bank", *place, "--to", "4"])

    out, err = capsys.readouterr()
    assert code == 0
    assert out == "bank has 4 shards, generation 1\n"
    assert "the change to 8 shards is called off" in err
    assert advice in err
    assert Plan.load(store.look("bank").documents[PLAN].text) == OFF


def test_who_waits_for_it_elsewhere_is_told(
    url: str, store: LeaseStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def call_off(_seconds: float) -> None:
        store.write("bank", PLAN, 2, OFF.dump())

    monkeypatch.setattr("worker.cli.reshard.sleep", call_off)

    code = main(["reshard", "--service", "bank", "--leases", url, "--to", "8"])

    out, err = capsys.readouterr()
    assert code == 1
    assert out == "bank has 4 shards, generation 1\n"
    assert "that is not 8 shards: somebody has called the change off" in err
