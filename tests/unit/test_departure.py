"""Properties are written as py-amqp writes them, byte for byte, or left to it."""

from __future__ import annotations

from typing import Any

import amqp
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from worker.transport.departure import plain_properties, publish_frames

_TEXT = st.text(max_size=40)
_PROPERTIES = st.fixed_dictionaries(
    {},
    optional={
        "content_type": _TEXT,
        "content_encoding": _TEXT,
        "delivery_mode": st.integers(0, 255),
        "priority": st.integers(0, 255),
        "correlation_id": _TEXT,
        "reply_to": _TEXT,
        "expiration": _TEXT,
        "message_id": _TEXT,
        "timestamp": st.integers(0, 2**64 - 1),
        "type": _TEXT,
        "user_id": _TEXT,
        "app_id": _TEXT,
    },
)
_INTEGERS = st.integers(-(2**63), 2**63 - 1) | st.sampled_from(
    [sign * (2**31 + off) for sign in (1, -1) for off in (-1, 0, 1)]
)
_HEADERS = st.dictionaries(_TEXT, _TEXT | _INTEGERS | st.lists(_TEXT, max_size=3), max_size=5)


def by_py_amqp(properties: dict[str, Any], headers: dict[str, Any]) -> bytes:
    message = amqp.Message(b"", application_headers=headers, **properties)
    written: bytes = message._serialize_properties()
    return written


@given(_PROPERTIES, _HEADERS)
@example({}, {})
@example({}, {"qw-revision": 2**63 - 1, "low": -(2**63), "a": 2**31 - 1, "b": -(2**31)})
@example({"message_id": "x" * 255}, {"n" * 255: "v" * 100_000, "BCC": ["qw-slot-1", ""]})
def test_what_is_plain_is_written_as_py_amqp_does(
    properties: dict[str, Any], headers: dict[str, Any]
) -> None:
    assert plain_properties(properties, headers) == by_py_amqp(properties, headers)


@pytest.mark.parametrize(
    "value", [2**63, True, None, 1.5, b"bytes", {"a": "b"}, ("a",), [1], [["a"]]]
)
def test_other_headers_are_left_to_py_amqp(value: object) -> None:
    assert plain_properties({}, {"a": value}) is None


@pytest.mark.parametrize(
    "properties",
    [
        {"message_id": "x" * 256},
        {"message_id": "\ud800"},
        {"message_id": 5},
        {"content_type": ["unhashable"]},
        {"priority": 256},
        {"priority": 1.5},
        {"timestamp": -1},
        {"timestamp": "now"},
    ],
    ids=str,
)
def test_other_properties_are_left_to_py_amqp(properties: dict[str, Any]) -> None:
    assert plain_properties(properties, {}) is None


def test_a_header_of_a_long_name_is_left_to_py_amqp() -> None:
    assert plain_properties({}, {"n" * 256: "v"}) is None


def test_the_same_name_is_refused_each_time() -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="AMQP names have 255 at most"):
            publish_frames(
                1,
                exchange="",
                routing_key="x" * 256,
                mandatory=False,
                properties=b"\0\0",
                body=b"",
                frame_max=4096,
            )
