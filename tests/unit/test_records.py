"""The record of a message: what a store knows it by."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.dedup.base import RECORD_BYTES, TIME_BYTES, record_ids
from worker.ids import new_id

record_id = record_ids("bank.work")
#: Seconds since 1970.
NOW = 1_796_000_000.0


@given(st.lists(st.floats(0, 2**48 / 1000 - 1), min_size=2, unique=True))
def test_records_of_uuids_of_version_7_are_sorted_by_their_time(moments: list[float]) -> None:
    made = [(int(moment * 1000) >> 8, record_id(new_id(moment))) for moment in moments]
    by_time = [time for time, _ in sorted(made, key=lambda each: each[1])]
    assert by_time == sorted(by_time)


def test_of_one_time_they_differ_in_what_follows() -> None:
    records = {record_id(new_id(NOW)) for _ in range(1000)}
    assert len({record[:TIME_BYTES] for record in records}) == 1
    assert len({record[TIME_BYTES:] for record in records}) == 1000


@pytest.mark.parametrize(
    "message_id",
    [
        "",
        "7",
        "order-7-of-2026",
        "6f1c0a52-6d2e-4f0c-9b0e-0d5c0a526d2e",  # version 4
        "01a22f1b-7490-7e1f-94ef-f20587b535a0 ",
        "01a22f1b-7490-7e1f-94ef-f20587b535a",
        "01a2 f1b- 490-7e1f-94ef-f20587b535a0",
        "0x1a22f1-7490-7e1f-94ef-f20587b535a0",
        "\u06601a22f1b-7490-7e1f-94ef-f20587b535a0",  # a digit, of another script
        "é" * 14 + "7" + "é" * 21,
        "\ud800" * 14 + "7" + "\ud800" * 21,
    ],
)
def test_those_of_other_ids_are_spread(message_id: str) -> None:
    records = {record_ids(f"bank.{number}")(message_id) for number in range(100)}
    assert {len(record) for record in records} == {RECORD_BYTES}
    assert len({record[:TIME_BYTES] for record in records}) == 100


@given(st.text(max_size=40), st.text(max_size=40))
def test_each_id_has_its_own(one: str, other: str) -> None:
    assert (record_id(one) == record_id(other)) is (one == other)


def test_an_id_is_known_by_all_of_its_text() -> None:
    written = new_id(NOW)
    ways = [written, written.upper(), written[:-1] + "x", written.replace("-", "_")]
    handlers = ("bank.work", "bank.other", "ban.kwork")
    records = {record_ids(handler)(way) for handler in handlers for way in ways}
    records |= {record_ids("bank.work", of="revisions")(written)}
    assert len(records) == len(handlers) * len(ways) + 1
