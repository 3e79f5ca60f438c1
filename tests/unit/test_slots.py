"""Slots: pinned, even, and every one of them with exactly one shard."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.sharding.slots import SLOTS, shard_of, slot_of, slot_routing_key, slots_of

KEYS = [f"user-{number}" for number in range(20_000)]


def test_slots_are_pinned_for_ever() -> None:
    # Messages wait in queues by them: a change here would put a key's successors into another.
    assert {key: slot_of(key) for key in ("", "user-1", "user-3", "über", "0190a7c1")} == {
        "": 0,
        "user-1": 0x7E264614 % SLOTS,
        "user-3": 0x90282738 % SLOTS,
        "über": 0xD2E10488 % SLOTS,
        "0190a7c1": 0xD11F973C % SLOTS,
    }
    assert slot_routing_key(17) == "qw-slot-17"


@given(st.text(), st.integers(1, 64))
def test_a_key_is_in_the_shard_that_has_its_slot(key: str, shards: int) -> None:
    having = [shard for shard in range(shards) if slot_of(key) in slots_of(shard, shards)]
    assert having == [shard_of(key, shards)]


@pytest.mark.parametrize("shards", [2, 3, 8, 48])
def test_shards_have_about_the_same(shards: int) -> None:
    mean = len(KEYS) / shards
    spread = Counter(shard_of(key, shards) for key in KEYS)
    assert len(spread) == shards
    assert max(spread.values()) < 1.25 * mean
    assert min(spread.values()) > 0.75 * mean
