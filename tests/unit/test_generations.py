"""The plan of a change of shards: one step after the other, each of which can be repeated."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import StoreCorrupt, UsageError
from worker.sharding.generations import Generation, Phase, Plan

FOUR = Plan(Generation(1, 4))


def steps(plan: Plan) -> list[Plan]:
    """Return every plan on the way, the first and the last too."""
    found = [plan]
    while found[-1].target is not None:
        found.append(found[-1].advanced())
    return found


def test_a_change_goes_through_its_steps_in_order() -> None:
    way = steps(FOUR.reshard(8))

    assert [plan.phase for plan in way] == [p for p in Phase if p is not Phase.REPLAY] + [None]
    assert way[-1] == Plan(Generation(2, 8), revision=2)


def test_the_new_generation_is_consumed_when_the_old_one_is_drained_and_not_before() -> None:
    consumed = {plan.phase: plan.consumed.number for plan in steps(FOUR.reshard(8))}

    assert consumed == {
        Phase.DECLARE: 1, Phase.BIND: 1, Phase.SEAL: 1, Phase.DRAIN: 1, Phase.REMOVE: 2, None: 2,
    }  # fmt: skip


def test_what_is_sent_to_the_service_goes_where_it_is_bound_and_not_sealed() -> None:
    published = {plan.phase: plan.published.number for plan in steps(FOUR.reshard(8))}

    assert published == {
        Phase.DECLARE: 1, Phase.BIND: 1, Phase.SEAL: 2, Phase.DRAIN: 2, Phase.REMOVE: 2, None: 2,
    }  # fmt: skip


def test_a_service_that_begins_with_the_past_consumes_that_first() -> None:
    way = steps(Plan.held(4, "r1", single_active=False))

    assert [plan.phase for plan in way] == [
        Phase.REPLAY, Phase.BIND, Phase.SEAL, Phase.DRAIN, Phase.REMOVE, None,
    ]  # fmt: skip
    assert [plan.consumed.number for plan in way] == [1, 1, 1, 1, 2, 2]
    assert [plan.published.number for plan in way] == [1, 1, 2, 2, 2, 2]
    assert all(plan.is_between for plan in way[:4])
    assert [plan.progress for plan in way] == sorted({plan.progress for plan in way})
    assert way[-1] == Plan(Generation(2, 4), revision=2)
    assert way[-1].reshard(8).target == Generation(3, 8)
    assert Plan.load(way[0].dump()) == way[0]


def test_while_the_past_is_handled_no_other_number_of_shards_can_be_asked_for() -> None:
    with pytest.raises(UsageError, match=r"from the past to what is live .* under way"):
        Plan.held(4, "r1", single_active=False).reshard(8)


def test_one_generation_after_the_other() -> None:
    plan = FOUR
    for shards in (8, 3):
        plan = steps(plan.reshard(shards))[-1]

    assert plan == Plan(Generation(3, 3), revision=3)
    assert plan.current.leases == ["g3.0", "g3.1", "g3.2"]


def test_asking_again_changes_nothing_and_asking_for_another_number_is_refused() -> None:
    assert FOUR.reshard(4) is FOUR
    plan = FOUR.reshard(8).advanced()
    assert plan.reshard(8) is plan
    with pytest.raises(UsageError, match="from 4 to 8 shards is under way"):
        plan.reshard(3)


def test_a_plan_at_its_goal_has_no_next_step() -> None:
    with pytest.raises(ValueError, match="no step"):
        FOUR.advanced()


@given(st.integers(1, 1024), st.integers(1, 1024), st.integers(0, 5))
def test_a_plan_is_read_as_it_was_written(before: int, after: int, done: int) -> None:
    way = steps(Plan(Generation(7, before)).reshard(after))
    plan = way[min(done, len(way) - 1)]

    assert Plan.load(plan.dump()) == plan


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"current":{"number":1},"target":null,"phase":null}',
             '{"current":{"number":1,"shards":4},"target":null,"phase":"bind"}'],
)  # fmt: skip
def test_what_is_no_plan_is_told(text: str) -> None:
    with pytest.raises(StoreCorrupt, match="no plan"):
        Plan.load(text)
