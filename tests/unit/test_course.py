"""What a supervisor is started with has to fit what its service has agreed upon."""

from __future__ import annotations

from dataclasses import replace

import pytest

from supervised.terms import TERMS
from worker.errors import StoreCorrupt
from worker.leases.base import Document, Lease, View
from worker.sharding.generations import PLAN, Generation, Plan
from worker.supervisor.control import Terms
from worker.supervisor.course import RESHARD, Course, Proposal, Refused

ALONE = replace(TERMS, single_active=True)
UNSET = replace(TERMS, shards=0)
FOUR = Plan(Generation(1, 4))
ONE_BY_ONE = replace(FOUR, single_active=True)


def view(plan: Plan | str | None, *members: str, **owners: str) -> View:
    """Return what a store knows. ``owners`` of leases: g1_3 for ``g1.3``."""
    text = plan.dump() if isinstance(plan, Plan) else plan
    return View(
        members=dict.fromkeys(members or ("ann",), ""),
        leases={name.replace("_", "."): Lease(who, 17, 5.0) for name, who in owners.items()},
        documents={} if text is None else {PLAN: Document(3, text)},
    )


def follow(terms: Terms, seen: View) -> Plan | Proposal | Refused:
    return Course(terms, "ann").follow(seen)


def test_who_comes_first_writes_what_it_was_started_with() -> None:
    assert follow(TERMS, view(None)) == Proposal(0, FOUR.dump())
    assert follow(ALONE, view(None)) == Proposal(0, ONE_BY_ONE.dump())


def test_who_comes_later_goes_by_what_is_written() -> None:
    assert follow(TERMS, view(FOUR, "ann", "bob", g1_0="bob")) == FOUR
    assert follow(ALONE, view(ONE_BY_ONE, "ann", "bob", g1="bob")) == ONE_BY_ONE


def test_another_number_of_shards_is_refused_with_what_to_do() -> None:
    refused = follow(replace(TERMS, shards=8), view(FOUR))

    assert isinstance(refused, Refused)
    assert refused.exit_code == 3
    assert refused.text == (
        "bank has 4 shards, and 8 are asked for: start with --shards 4. To change their number,"
        " while it runs: qworker reshard --to 8"
    )


@pytest.mark.parametrize("shards", [4, 8])
def test_on_the_way_to_another_number_both_will_do(shards: int) -> None:
    plan = FOUR.reshard(8)

    assert follow(replace(TERMS, shards=shards), view(plan)) == plan


@pytest.mark.parametrize("plan", [FOUR, Plan(Generation(7, 16)), FOUR.reshard(8)])
def test_who_asks_for_no_number_goes_by_the_one_that_there_is(plan: Plan) -> None:
    assert follow(UNSET, view(plan)) == plan


def test_who_asks_for_no_number_begins_with_what_the_broker_has_or_with_one() -> None:
    assert follow(UNSET, view(None)) == Proposal(0, Plan(Generation(1, 1)).dump())
    course = Course(UNSET, "ann")
    course.found = [Generation(2, 16)]
    assert course.follow(view(None)) == Proposal(0, Plan(Generation(2, 16)).dump())


def test_on_the_way_a_third_number_is_told_of_the_way() -> None:
    refused = follow(replace(TERMS, shards=1), view(Plan(Generation(1, 1)).reshard(8)))
    assert not isinstance(refused, Refused)
    refused = follow(replace(TERMS, shards=2), view(Plan(Generation(1, 1)).reshard(8)))

    assert isinstance(refused, Refused)
    assert "bank has 1 shard, and 2 are asked for" in refused.text
    assert "it is on its way to 8 shards" in refused.text


def test_who_was_there_before_the_number_changed_goes_along() -> None:
    course = Course(TERMS, "ann")
    plan = FOUR
    assert course.follow(view(plan)) == plan

    plan = plan.reshard(8)
    while plan.target is not None:
        plan = plan.advanced()
        assert course.follow(view(plan)) == plan
    assert plan.current == Generation(2, 8)


@pytest.mark.parametrize(
    ("terms", "plan", "told"),
    [
        (TERMS, ONE_BY_ONE, "bank runs with --single-active elsewhere"),
        (ALONE, FOUR, "bank runs without --single-active elsewhere"),
    ],
)
@pytest.mark.parametrize(
    "seen", [{"members": ("ann", "bob")}, {"owners": {"g1_2": "bob"}}, {"owners": {"g1": "bob"}}]
)
def test_two_ways_of_consuming_do_not_go_together(
    terms: Terms, plan: Plan, told: str, seen: dict[str, dict[str, str]]
) -> None:
    refused = follow(terms, view(plan, *seen.get("members", ()), **seen.get("owners", {})))

    assert isinstance(refused, Refused)
    assert refused.exit_code == 3
    assert told in refused.text


@pytest.mark.parametrize(
    ("terms", "before", "after"), [(TERMS, ONE_BY_ONE, FOUR), (ALONE, FOUR, ONE_BY_ONE)]
)
def test_who_is_alone_may_change_the_way(terms: Terms, before: Plan, after: Plan) -> None:
    assert follow(terms, view(before, "ann")) == Proposal(3, after.dump())


def test_who_takes_part_already_changes_nothing_and_leaves() -> None:
    course = Course(TERMS, "ann")
    assert course.follow(view(FOUR)) == FOUR

    assert isinstance(course.follow(view(ONE_BY_ONE)), Refused)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"current": {"number": 1}}'])
def test_a_document_that_is_no_plan_is_an_error(text: str) -> None:
    with pytest.raises(StoreCorrupt):
        follow(TERMS, view(text))


def test_a_lease_is_shared_out_for_each_shard_or_one_for_all() -> None:
    course = Course(TERMS, "ann")

    assert course.leases(FOUR, view(FOUR)) == ["g1.0", "g1.1", "g1.2", "g1.3"]
    assert course.leases(ONE_BY_ONE, view(ONE_BY_ONE)) == ["g1"]


@pytest.mark.parametrize(("plan", "left"), [(FOUR, {"g1": "bob"}), (ONE_BY_ONE, {"g1_3": "bob"})])
def test_nothing_is_shared_out_while_somebody_consumes_in_the_other_way(
    plan: Plan, left: dict[str, str]
) -> None:
    """It may have taken its lease just before the way was changed."""
    course = Course(TERMS, "ann")

    assert course.leases(plan, view(plan, **left)) == []
    assert course.leases(plan, view(plan)) != []


def test_there_is_somebody_to_lead_a_change_and_else_nobody() -> None:
    course = Course(TERMS, "ann")

    assert course.jobs(FOUR) == []
    assert course.jobs(FOUR.reshard(8)) == [RESHARD]


def test_a_plan_that_went_back_is_written_anew() -> None:
    course = Course(replace(TERMS, shards=8), "ann")
    now = Plan(Generation(2, 8))
    assert course.follow(view(now)) == now

    for before in (FOUR, FOUR.reshard(8)):
        assert course.follow(view(before)) == Proposal(3, now.dump())
