"""Assignment: balanced, moving as little as possible, and the same for whoever looks when."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from processes import printed_elsewhere
from worker.sharding.assignment import assign

members_of = st.integers(1, 7).map(lambda count: [f"member-{n}" for n in range(count)])
counts = st.integers(0, 40)


def names(count: int) -> list[str]:
    return [f"g1.{number}" for number in range(count)]


def moves(before: Mapping[str, str], after: Mapping[str, str]) -> int:
    return sum(after[shard] != owner for shard, owner in before.items())


def least_moves(before: Mapping[str, str], shards: int, members: list[str]) -> int:
    """Return what any assignment has to move in which no two members differ by more than one."""
    fewer, larger = divmod(shards, len(members))
    loads = Counter(before.values())
    kept = sum(min(loads[member], fewer) for member in members)
    kept += min(larger, sum(loads[member] > fewer for member in members))
    return len(before) - kept


@given(counts, members_of)
def test_everybody_has_as_many_as_anybody_give_or_take_one(count: int, members: list[str]) -> None:
    assigned = assign(names(count), members, {})
    loads = Counter(assigned.values())

    assert assigned.keys() == set(names(count))
    assert {loads[member] for member in members} <= {
        count // len(members),
        -(-count // len(members)),
    }


@given(counts, members_of, st.integers(0, 2**32))
def test_no_balanced_assignment_moves_less(count: int, members: list[str], seed: int) -> None:
    """Whatever the members had: all, nothing, or what members owned that are gone."""
    random = Random(seed)
    everybody = [*members, "gone-1", "gone-2"]
    before = {shard: random.choice(everybody) for shard in names(count) if random.random() < 0.9}

    after = assign(names(count), members, before)

    loads = Counter(after.values())
    assert max(loads.values(), default=0) <= -(-count // len(members))
    assert moves(before, after) == least_moves(before, count, members)


@pytest.mark.parametrize(
    ("before", "after", "moved"), [(3, 4, 16), (4, 3, 16), (1, 2, 32), (9, 8, 7)]
)
def test_a_member_more_or_less_moves_its_own_share(before: int, after: int, moved: int) -> None:
    members = [f"member-{n}" for n in range(max(before, after))]
    first = assign(names(64), members[:before], {})

    second = assign(names(64), members[:after], first)

    assert moves(first, second) == moved


@settings(max_examples=200)
@given(st.integers(1, 40), members_of, st.integers(0, 2**32))
def test_it_stays_the_same_while_it_is_carried_out(
    count: int, members: list[str], seed: int
) -> None:
    random = Random(seed)
    everybody = [*members, "gone"]
    owners = {shard: random.choice(everybody) for shard in names(count)}
    goal = assign(names(count), members, owners)

    pending = [shard for shard in names(count) if owners[shard] != goal[shard]]
    random.shuffle(pending)
    for shard in pending:
        del owners[shard]  # given up, and not taken yet
        assert assign(names(count), members, owners) == goal
        if random.random() < 0.7:
            owners[shard] = goal[shard]
            assert assign(names(count), members, owners) == goal
    assert assign(names(count), members, goal) == goal


@given(counts, members_of, st.randoms(use_true_random=False))
def test_the_order_of_members_does_not_matter(
    count: int, members: list[str], random: Random
) -> None:
    shuffled = list(members)
    random.shuffle(shuffled)
    assert assign(names(count), members, {}) == assign(names(count), shuffled, {})


def test_nobody_gets_what_nobody_is_there_for() -> None:
    assert assign(names(8), [], {"g1.0": "gone"}) == {}


def test_another_process_with_another_hash_seed_agrees() -> None:
    program = (
        "from worker.sharding.assignment import assign;"
        "a = assign([f'g1.{n}' for n in range(64)], {'x', 'y', 'z'}, {'g1.3': 'y'});"
        "print(''.join(a[f'g1.{n}'] for n in range(64)))"
    )
    assigned = assign(names(64), {"z", "y", "x"}, {"g1.3": "y"})
    assert printed_elsewhere(program) == "".join(assigned[shard] for shard in names(64))
