"""Supervisors whose lease store forgot the plan, and the versions of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from supervised.terms import TERMS
from worker.leases.base import Document, View
from worker.sharding.generations import PLAN, Generation, Phase, Plan
from worker.supervisor.course import Course, Proposal, Refused
from worker.supervisor.facts import Facts
from worker.supervisor.resharder import Resharder
from worker.supervisor.stage import Stage

EMPTY = View(members={"ann": ""})


def knowing(plan: Plan, *members: Facts) -> View:
    told = {f"m{n}": facts.dump() for n, facts in enumerate(members)}
    return View(members=told or {"ann": ""}, documents={PLAN: Document(1, plan.dump())})


def first(found: Sequence[Generation], **terms: Any) -> Proposal | Plan | Refused:
    course = Course(replace(TERMS, **terms), "ann")
    assert course.asks(EMPTY)
    course.found = found
    assert not course.asks(EMPTY)
    return course.follow(EMPTY)


def test_who_is_first_begins_with_what_the_broker_has() -> None:
    three, four = Generation(3, 4), Generation(4, 4)

    assert first([]) == Proposal(0, Plan(Generation(1, 4)).dump())
    assert first([three]) == Proposal(0, Plan(three).dump())
    assert first([three, four]) == Proposal(0, Plan(three, four, Phase.BIND).dump())


def test_another_number_of_shards_is_refused_before_anything_is_written() -> None:
    refused = first([Generation(3, 8)])

    assert isinstance(refused, Refused)
    assert "bank has 8 shards, and 4 are asked for" in refused.text
    assert "qworker reshard --to 4" in refused.text
    assert isinstance(first([Generation(n, 4) for n in range(1, 4)]), Refused)


def test_who_went_by_a_plan_writes_it_again() -> None:
    course = Course(TERMS, "ann")
    plan = Plan(Generation(7, 4)).reshard(8).advanced()
    course.follow(knowing(plan))

    assert not course.asks(EMPTY)
    assert course.follow(EMPTY) == Proposal(0, plan.dump())


def process(version: int) -> Any:
    child = SimpleNamespace(stage=Stage.READY, told=version, followed=version, pid=1)
    child.follow_at = float("inf")
    child.follow = lambda _, version: setattr(child, "told", version)
    return child


@pytest.mark.parametrize("version", [1, 6, 7])
def test_processes_follow_a_plan_whose_versions_began_anew(version: int) -> None:
    """What they followed before says nothing of it, also where the number is the same."""
    proposed: list[int] = []
    resharder = Resharder(lambda version, _: proposed.append(version))
    before, child = Plan(Generation(1, 4)), process(7)
    resharder.hear(before, knowing(before), 7, leads=False)
    resharder.drive([child], 0.0)
    assert resharder.followed == 7

    plan = Plan(Generation(1, 4), Generation(2, 8), Phase.BIND)
    resharder.hear(plan, knowing(plan, Facts(followed=resharder.followed)), version, leads=True)
    resharder.drive([child], 0.0)
    assert child.told == version
    assert resharder.followed != version, "it was told and has not followed yet"
    assert proposed == []

    child.followed = version
    resharder.drive([child], 0.0)
    assert resharder.followed == version
    resharder.hear(plan, knowing(plan, Facts(followed=version)), version, leads=True)
    resharder.drive([child], 0.0)
    assert proposed == [version]
