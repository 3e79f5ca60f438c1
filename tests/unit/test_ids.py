"""Ids are unique, sort by time, and come out the same when a handler publishes a second time."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from worker.ids import derived_id, front_of, new_id, time_of_id

#: Python's years end at 9999.
datable = st.floats(0, 253_402_300_799, allow_nan=False)


def test_an_id_is_a_uuid_of_version_7() -> None:
    parsed = UUID(new_id())

    assert parsed.version == 7
    assert parsed.variant == "specified in RFC 4122"


def test_ids_differ() -> None:
    moment = time.time()

    assert len({new_id(moment) for _ in range(10_000)}) == 10_000


@given(datable, st.floats(0.001, 1e6))
def test_a_later_id_sorts_behind_an_earlier_one(now: float, later: float) -> None:
    first, second = new_id(now), new_id(now + later)

    assert first[:13] <= second[:13]


@given(datable)
def test_an_id_tells_when_it_was_made(now: float) -> None:
    made = time_of_id(new_id(now))

    assert made is not None
    assert made.tzinfo is UTC
    assert abs(made.timestamp() - now) <= 0.0011


def test_the_time_is_this_moment_where_none_is_given() -> None:
    before = datetime.now(UTC)
    made = time_of_id(new_id())

    assert made is not None
    assert abs((made - before).total_seconds()) < 10


@given(st.text(max_size=60))
def test_other_ids_tell_no_time_and_never_raise(text: str) -> None:
    time_of_id(text)
    time_of_id(f"{text:.14}7{text}"[:36].ljust(36, "x"))


def test_a_uuid_of_another_version_tells_no_time() -> None:
    assert time_of_id("9f0c5f64-2e3c-4b8e-9d6c-1f1f0b1c2d3e") is None


def test_a_derived_id_is_the_same_at_every_execution() -> None:
    assert derived_id("parent", "bank.record", 0) == derived_id("parent", "bank.record", 0)
    # On the wire since the first release: consumers drop second executions by it.
    assert derived_id("parent", "bank.record", 0) == "d52854b4-8c54-8e1a-90ef-4d3f64e43980"


def test_a_derived_id_begins_with_the_time_of_its_parent_and_so_do_those_derived_from_it() -> None:
    parent = "01a22fc0-8bdb-7476-8f99-f537772adecf"
    child = derived_id(parent, "bank.record", 0)
    grandchild = derived_id(child, "mail.send", 0)

    assert child == "01a22fc0-8bdb-8ab0-9dcf-6cc255826ec6"
    assert [each[:13] for each in (child, grandchild)] == [parent[:13]] * 2
    assert front_of(child) == front_of(parent) == bytes.fromhex("01a22fc08bdb")
    assert time_of_id(child) is None  # a UUIDv8 of others may begin with anything


@given(st.text(), st.text(min_size=1), st.integers(0, 1000))
def test_a_derived_id_is_a_uuid_of_version_8(parent: str, handler: str, position: int) -> None:
    parsed = UUID(derived_id(parent, handler, position))

    assert parsed.version == 8
    assert parsed.variant == "specified in RFC 4122"


def test_derived_ids_differ_by_parent_handler_and_position() -> None:
    ids = {
        derived_id(parent, handler, position)
        for parent in ("a", "b")
        for handler in ("x", "y")
        for position in (0, 1, 10)
    }

    assert len(ids) == 12


def test_an_id_with_lone_surrogates_has_children_too() -> None:
    assert derived_id("\udcff", "h", 0) != derived_id("\udcfe", "h", 0)
