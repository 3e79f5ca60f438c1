"""The hash ring: the same everywhere, even, and moving no more than it must."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processes import printed_elsewhere
from worker.sharding.ring import Ring

KEYS = [f"user-{number}" for number in range(20_000)]

members = st.dictionaries(
    st.text(min_size=1, max_size=8), st.integers(1, 5), min_size=1, max_size=8
)


def test_a_mapping_is_pinned_for_ever() -> None:
    # Messages wait in queues by it: a change here would put a key's successors into another queue.
    equal = Ring({f"bank.g1.{shard}": 10 for shard in range(4)})
    assert {key: equal.lookup(key) for key in ("", "user-1", "user-3", "über", "0190a7c1")} == {
        "": "bank.g1.2",
        "user-1": "bank.g1.3",
        "user-3": "bank.g1.1",
        "über": "bank.g1.3",
        "0190a7c1": equal.lookup(b"0190a7c1"),
    }
    weighted = Ring({"small": 1, "big": 3})
    assert [weighted.lookup(f"user-{n}") for n in range(1, 7)] == [
        *("big", "big", "small", "small", "small", "big"),
    ]


def test_another_process_with_another_hash_seed_agrees() -> None:
    program = (
        "from worker.sharding.ring import Ring;"
        "r = Ring({'a': 1, 'b': 2, 'c': 1});"
        "print(''.join(r.lookup(str(n)) for n in range(200)))"
    )
    ring = Ring({"c": 1, "b": 2, "a": 1})
    assert printed_elsewhere(program) == "".join(ring.lookup(str(n)) for n in range(200))


def test_text_is_its_utf8() -> None:
    ring = Ring({"a": 1, "b": 1, "c": 1})
    for key in ("ä", "user-1", ""):
        assert ring.lookup(key) == ring.lookup(key.encode())


@pytest.mark.parametrize("count", [2, 8, 32])
def test_equal_members_have_about_equal_loads(count: int) -> None:
    ring = Ring({f"queue-{number}": 10 for number in range(count)})
    loads = [0] * count
    for key in KEYS:
        loads[int(ring.lookup(key).split("-")[1])] += 1
    fair = len(KEYS) / count
    assert min(loads) > 0.7 * fair
    assert max(loads) < 1.3 * fair


def test_a_weight_is_a_share() -> None:
    ring = Ring({"small": 10, "big": 30})
    share = sum(ring.lookup(key) == "big" for key in KEYS) / len(KEYS)
    assert 0.68 < share < 0.82


def test_only_proportions_of_weights_count() -> None:
    one, ten = Ring({"a": 1, "b": 2}), Ring({"a": 10, "b": 20})
    assert [one.lookup(key) for key in KEYS[:500]] == [ten.lookup(key) for key in KEYS[:500]]


@given(members, st.text(min_size=1, max_size=8), st.lists(st.text(), max_size=50))
def test_a_new_member_takes_keys_and_moves_no_others(
    weights: dict[str, int], newcomer: str, keys: list[str]
) -> None:
    weights.pop(newcomer, None)
    if not weights:
        return
    before = Ring(weights)
    after = Ring({**weights, newcomer: min(weights.values())})
    for key in keys:
        assert after.lookup(key) in (before.lookup(key), newcomer)


@given(members, st.binary(max_size=20))
def test_the_order_of_members_does_not_matter(weights: dict[str, int], key: bytes) -> None:
    backwards = dict(reversed(weights.items()))
    assert Ring(weights).lookup(key) == Ring(backwards).lookup(key)


def test_huge_weights_do_not_make_a_huge_ring() -> None:
    assert Ring({"a": 1, "b": 10**9}).lookup("anything") == "b"


@pytest.mark.parametrize("weights", [{}, {"a": 0}, {"a": 1, "b": -1}])
def test_no_members_and_no_weights_are_refused(weights: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="ring"):
        Ring(weights)


@given(members, st.text())
def test_every_member_is_a_preference_once_the_owner_first(
    weights: dict[str, int], key: str
) -> None:
    ring = Ring(weights)
    preferences = list(ring.preferences(key))
    assert preferences[0] == ring.lookup(key)
    assert sorted(preferences) == sorted(weights)
