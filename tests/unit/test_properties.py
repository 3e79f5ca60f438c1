"""Properties are amended without decoding them: what a publisher said stays byte for byte."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from decimal import Decimal
from struct import pack
from typing import Any

import amqp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.transport.properties import Malformed, amend, amend_decoded, without

#: One header of every type that py-amqp writes, and of every other that RabbitMQ knows.
HEADERS: dict[str, Any] = {
    "text": "ünï",
    "long": "x" * 5000,
    "empty": "",
    "truth": True,
    "small": -5,
    "big": 2**40,
    "float": 1.5,
    "decimal": Decimal("1.25"),
    "date": datetime(2020, 1, 2, 3, 4, 5),  # noqa: DTZ001 - as AMQP has it
    "nothing": None,
    "table": {"a": {"b": [1, "two", None, {"c": False}]}},
    "array": [[1], ["x"], []],
}
PROPERTIES: dict[str, Any] = {
    "content_type": "application/json",
    "content_encoding": "utf-8",
    "delivery_mode": 2,
    "priority": 5,
    "correlation_id": "story",
    "reply_to": "there",
    "expiration": "60000",
    "message_id": "id-1",
    "timestamp": 1_577_923_200,
    "type": "user.deposited",
    "user_id": "guest",
    "app_id": "bank",
    "cluster_id": "c",
}
RAW_VALUES = {
    "t": b"t\1", "b": b"b\xff", "B": b"B\xff", "s": b"s\xff\0", "u": b"u\xff\0",
    "I": b"I\xff\0\0\0", "i": b"i\xff\0\0\0", "l": b"l" + b"\xff" * 8, "L": b"L" + b"\xff" * 8,
    "f": b"f\x7f\xc0\0\0", "d": b"d\x7f\xf8" + b"\0" * 6, "D": b"D\2\0\0\0\5",
    "T": b"T" + b"\0" * 8, "V": b"V", "S": b"S\0\0\0\2\xff\xfe", "x": b"x\0\0\0\1\0",
    "A": b"A\0\0\0\1V", "F": b"F\0\0\0\3\1aV",
}  # fmt: skip


def encode(properties: dict[str, Any], headers: dict[str, Any] | None) -> bytes:
    """Return flags and list as py-amqp writes them."""
    message = amqp.Message(b"", application_headers=headers, **properties)
    encoded: bytes = message._serialize_properties()
    return encoded


def decode(raw: bytes) -> dict[str, Any]:
    message = amqp.Message()
    message._load_properties(60, raw, 0)
    properties: dict[str, Any] = message.properties
    return properties


def amended(raw: bytes, **changes: Any) -> bytes:
    return amend(raw, **{"add": {}, "rename": {}, **changes})


def with_header(name: bytes, value: bytes) -> bytes:
    table = bytes([len(name)]) + name + value
    return pack(">HI", 0x2000, len(table)) + table


class TestAmend:
    def test_headers_are_added_behind_those_that_are_there(self) -> None:
        after = decode(amended(encode(PROPERTIES, HEADERS), add={"reason": "no", "attempts": 3}))

        assert after["application_headers"] == {**HEADERS, "reason": "no", "attempts": 3}

    def test_every_property_stays_but_those_that_would_harm_it_elsewhere(self) -> None:
        after = decode(amended(encode(PROPERTIES, HEADERS)))

        assert {k: v for k, v in after.items() if k != "application_headers"} == without(
            PROPERTIES, ("expiration", "user_id")
        )

    @pytest.mark.parametrize("left_out", [*PROPERTIES, None])
    def test_any_property_may_be_missing(self, left_out: str | None) -> None:
        properties = without(PROPERTIES, (left_out or "", "expiration", "user_id"))
        after = decode(amended(encode(dict(properties), None), add={"a": 1}))

        assert after == {**properties, "application_headers": {"a": 1}}

    def test_a_message_without_any_properties_can_be_given_headers(self) -> None:
        assert decode(amended(b"\0\0", add={"a": "b"})) == {"application_headers": {"a": "b"}}

    def test_a_header_can_be_renamed(self) -> None:
        raw = encode({}, {"CC": ["other.queue"], "x": 1})
        after = decode(amended(raw, rename={b"CC": b"qw-dead-CC"}))

        assert after["application_headers"] == {"qw-dead-CC": ["other.queue"], "x": 1}

    def test_headers_of_a_prefix_can_be_dropped(self) -> None:
        raw = encode({}, {"qw-dead-reason": "no", "qw-key": "k"})
        after = decode(amended(raw, drop_prefix=b"qw-dead-"))

        assert after["application_headers"] == {"qw-key": "k"}

    def test_a_header_that_is_added_stands_in_place_of_one_of_its_name(self) -> None:
        after = amended(
            encode({}, {"qw-dead-reason": "old", "x": 1}), add={"qw-dead-reason": "new"}
        )

        assert after.count(b"qw-dead-reason") == 1
        assert decode(after)["application_headers"] == {"x": 1, "qw-dead-reason": "new"}

    @pytest.mark.parametrize("letter", RAW_VALUES)
    def test_a_value_of_any_type_passes_untouched(self, letter: str) -> None:
        raw = with_header(b"h", RAW_VALUES[letter])

        assert amended(raw) == raw
        assert RAW_VALUES[letter] in amended(raw, add={"a": 1}, rename={b"h": b"other"})

    @pytest.mark.parametrize("name", [b"", b"\xff\xfe", b"n" * 255])
    def test_a_header_of_any_name_passes_untouched(self, name: bytes) -> None:
        raw = with_header(name, b"V")

        assert amended(raw) == raw

    def test_lone_surrogates_in_what_is_added_become_question_marks(self) -> None:
        after = decode(amended(b"\0\0", add={"reason": "\udcff"}))

        assert after["application_headers"] == {"reason": "?"}


class TestHostileBytes:
    def test_every_truncation_is_malformed_and_nothing_else(self) -> None:
        raw = encode(PROPERTIES, HEADERS)
        for length in range(len(raw)):
            with pytest.raises(Malformed):
                amended(raw[:length])

    @settings(max_examples=1000)
    @given(st.binary(max_size=80) | st.binary(max_size=40).map(lambda b: b"\x20\x00" + b))
    def test_any_bytes_are_amended_or_malformed(self, raw: bytes) -> None:
        try:
            after = amended(raw, add={"a": 1})
        except Malformed:
            return
        assert amended(after, add={"a": 1}) == after

    @settings(max_examples=500)
    @given(st.data())
    def test_a_changed_byte_is_amended_or_malformed(self, data: st.DataObject) -> None:
        raw = bytearray(encode(PROPERTIES, {"a": "b", "c": {"d": [1]}}))
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
        with suppress(Malformed):
            amended(bytes(raw), add={"x": 1})

    @pytest.mark.parametrize(
        ("raw", "told"),
        [
            (b"\0\1", "more property flags"),
            (with_header(b"h", b"?"), "unknown type"),
            (with_header(b"h", b"S\xff\xff\xff\xff"), "ends outside its table"),
            (with_header(b"h", b"l\0"), "ends outside its table"),
            (b"\x20\0\xff\xff\xff\xff", "the headers end too early"),
            (b"\x80\0\5abc", "a short string ends too early"),
            (b"\x10\0", "the properties end too early"),
        ],
    )
    def test_it_says_what_is_wrong(self, raw: bytes, told: str) -> None:
        with pytest.raises(Malformed, match=told):
            amended(raw)


class TestDecoded:
    """The embedded broker hands on decoded headers; they are changed alike."""

    @pytest.mark.parametrize(
        "changes",
        [
            {"add": {"a": 1, "CC": "x"}},
            {"rename": {"CC": "qw-dead-CC"}},
            {"drop_prefix": "qw-"},
            {"add": {"qw-key": "new"}, "rename": {"CC": "other"}, "drop_prefix": "te"},
        ],
    )
    def test_both_ways_come_to_the_same(self, changes: dict[str, Any]) -> None:
        headers = {**HEADERS, "CC": ["q"], "qw-key": "k"}
        rename = changes.get("rename", {})
        prefix = changes.get("drop_prefix")
        raw = amend(
            encode({}, headers),
            add=changes.get("add", {}),
            rename={old.encode(): new.encode() for old, new in rename.items()},
            drop_prefix=None if prefix is None else prefix.encode(),
        )

        assert decode(raw)["application_headers"] == amend_decoded(
            headers, add=changes.get("add", {}), rename=rename, drop_prefix=prefix
        )

    def test_names_that_are_no_text_are_passed_over(self) -> None:
        headers: Any = {b"\xff": 1, "qw-a": 2}
        kept: Any = amend_decoded(headers, add={}, rename={}, drop_prefix="qw-")

        assert kept == {b"\xff": 1}
