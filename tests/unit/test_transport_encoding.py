"""Properties and arguments come back equal, and what AMQP cannot carry is refused."""

from __future__ import annotations

import enum
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.transport.embedded.encoding import (
    Unencodable,
    check_short_string,
    decode_properties,
    decode_table,
    encode_properties,
    encode_table,
)

names = st.text(st.characters(codec="utf-8"), max_size=20)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8"))
    | st.binary()
    | st.decimals(allow_nan=False)
    | st.datetimes(timezones=st.none() | st.just(UTC) | st.just(timezone(timedelta(hours=-3))))
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)
tables = st.dictionaries(names, values, max_size=5)


def same(left: object, right: object) -> bool:
    """Equal, and of equal types all the way down: 1 is not True, and not 1.0."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


@given(tables)
def test_headers_come_back_equal(headers: dict[str, Any]) -> None:
    found = decode_properties(encode_properties({"application_headers": headers}))
    assert same(found, {"application_headers": headers})


@given(tables)
def test_arguments_come_back_equal(arguments: dict[str, Any]) -> None:
    assert same(decode_table(encode_table(arguments)), arguments)


@given(tables)
def test_equal_arguments_are_equal_bytes(arguments: dict[str, Any]) -> None:
    assert encode_table(arguments) == encode_table(dict(reversed(arguments.items())))


def test_no_arguments_is_an_empty_table() -> None:
    assert encode_table(None) == encode_table({}) == b"\x80"


def test_every_property_comes_back() -> None:
    properties = {
        "content_type": "application/json",
        "content_encoding": "utf-8",
        "application_headers": {"qw-key": "user-1"},
        "delivery_mode": 2,
        "priority": 0,
        "correlation_id": "c",
        "reply_to": "r",
        "expiration": "60000",
        "message_id": "m",
        "timestamp": 1_700_000_000,
        "type": "user.deposited",
        "user_id": "guest",
        "app_id": "bank",
        "cluster_id": "",
    }
    assert decode_properties(encode_properties(properties)) == properties


def test_a_timestamp_may_be_a_date() -> None:
    properties = {"timestamp": datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)}
    assert decode_properties(encode_properties(properties)) == properties


def test_what_is_none_or_unknown_is_left_out() -> None:
    properties = {"content_type": None, "priority": 1, "no_such_property": object()}
    assert decode_properties(encode_properties(properties)) == {"priority": 1}


def test_python_types_travel_as_amqp_has_them() -> None:
    class Colour(enum.StrEnum):
        RED = "red"

    headers = {"tuple": (1, 2), "enum": Colour.RED, "array": bytearray(b"x"), "big": 2**200}
    found = decode_properties(
        encode_properties({"application_headers": headers, "type": Colour.RED})
    )
    assert same(
        found,
        {
            "application_headers": {"tuple": [1, 2], "enum": "red", "array": b"x", "big": 2**200},
            "type": "red",
        },
    )


def test_a_big_number_beside_a_date() -> None:
    properties = {
        "application_headers": {"big": -(2**80)},
        "timestamp": datetime(2024, 1, 1, tzinfo=UTC),
    }
    assert decode_properties(encode_properties(properties)) == properties


def test_a_short_string_has_255_bytes() -> None:
    assert check_short_string("x" * 255, "it") == "x" * 255
    assert check_short_string("ä" * 127, "it") == "ä" * 127
    for text in ("x" * 256, "ä" * 128, "\U0001f4a9" * 64):
        with pytest.raises(Unencodable, match="it is longer than 255 bytes"):
            check_short_string(text, "it")


@pytest.mark.parametrize(
    "properties",
    [
        {"message_id": "x" * 256},
        {"message_id": 7},
        {"message_id": "\ud800"},
        {"priority": 256},
        {"priority": "high"},
        {"delivery_mode": -1},
        {"application_headers": [("a", 1)]},
        {"application_headers": {"x" * 256: 1}},
        {"application_headers": {1: 1}},
        {"application_headers": {"nested": {"x" * 256: 1}}},
        {"application_headers": {"a": object()}},
        {"application_headers": {"a": [{1, 2}]}},
        {"application_headers": {"a": "\ud800"}},
        {"application_headers": {"a": Decimal(1), "b": lambda: None}},
    ],
)
def test_what_amqp_cannot_carry_is_refused(properties: dict[str, Any]) -> None:
    with pytest.raises(Unencodable):
        encode_properties(properties)
