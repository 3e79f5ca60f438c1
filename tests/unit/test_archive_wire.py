"""What is archived can be sent again: what never could be is refused, what has no room left out."""

from __future__ import annotations

from typing import Any

import amqp
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.again import LEFT_OUT, replay_headers
from worker.archive.entry import Entry, Unarchivable, outgoing_of
from worker.archive.lines import dump_line, load_line
from worker.archive.tables import dump_table, load_table
from worker.archive.wire import SURELY_FIT, make_fit
from worker.message import Outgoing
from worker.transport.departure import MOST_PROPERTIES, plain_properties, publish_frames
from worker.transport.embedded.encoding import encode_properties

AT = 1_700_000_000_000_000
#: What the frames of a broker may have, where nothing else is set.
FRAME_MAX = 131_072
ODD = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=300)
    | st.lists(st.integers() | st.text())
)
PROPERTIES = st.sampled_from(
    ["content_type", "correlation_id", "priority", "timestamp", "expiration", "user_id", "zzz"]
)


def line(**facts: Any) -> bytes:
    return orjson.dumps({"id": "id-1", "name": "user.created", "payload": {}, **facts})


def sent(message: Outgoing) -> int:
    """Write a message as the sender does, for both kinds of brokers; return its headers' bytes."""
    encode_properties({**message.properties, "application_headers": message.headers})
    properties = plain_properties(message.properties, message.headers)
    if properties is None:
        plain = amqp.Message(b"", application_headers=message.headers, **message.properties)
        properties = plain._serialize_properties()
    assert publish_frames(
        1, exchange="", routing_key="q", mandatory=True, properties=properties, body=b"",
        frame_max=FRAME_MAX,
    )  # fmt: skip
    return len(properties)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"properties": {"priority": "x"}}, "'priority'.*0 to 255"),
        ({"properties": {"priority": 300}}, "'priority'.*0 to 255"),
        ({"properties": {"timestamp": "q"}}, "'timestamp'"),
        ({"properties": {"timestamp": -1}}, "'timestamp'"),
        ({"properties": {"correlation_id": "c" * 300}}, "'correlation_id'.*255"),
        ({"properties": {"content_type": 5}}, "'content_type'.*text"),
        ({"headers": {"fine": 1, "a": 2.0**70, "b": {"c": float(2)}, "x": [True]}}, ""),
        ({"headers": {"h" * 300: 1}}, "header 'hhh.*….*255"),
        ({"headers": {"x": "y" * 200_000}}, f"{MOST_PROPERTIES} at most"),
        ({"headers": {"x": "y" * 200_000, "z": None}}, f"{MOST_PROPERTIES} at most"),
        (
            {"headers": {"a": [1, {"b": {"$float": "nan"}}]}},
            "header 'a' is .*nan.*no number that is not finite",
        ),
        (
            {"headers": {"a": {"$float": "-inf"}, "b": 1}},
            "header 'a' is -inf; .*no number that is not finite",
        ),
    ],
)
def test_a_line_that_could_never_be_sent_is_refused(change: dict[str, Any], told: str) -> None:
    if not told:
        assert sent(outgoing_of(load_line(line(**change), AT), {}))
        return
    with pytest.raises(Unarchivable, match=f"never be sent.*{told}"):
        load_line(line(**change), AT)


def test_a_number_that_amqp_has_no_room_for_is_refused() -> None:
    text = line(headers={"a": 1, "b": 0}).replace(b'"a":1', b'"a":%d' % 2**70)

    with pytest.raises(Unarchivable, match="header 'a'"):
        load_line(text, AT)


@given(
    headers=st.dictionaries(st.text(max_size=300), ODD, max_size=3),
    properties=st.dictionaries(PROPERTIES, ODD, max_size=3),
)
def test_what_is_taken_can_be_sent_to_any_broker(
    headers: dict[str, Any], properties: dict[str, Any]
) -> None:
    text = line().removesuffix(b"}")
    for name, table in (("headers", headers), ("properties", properties)):
        text += b',"%s":%s' % (name.encode(), dump_table(table).encode())
    try:
        entry = load_line(text + b"}", AT)
    except Unarchivable:
        return

    assert sent(outgoing_of(entry, replay_headers("r", ["h"], again=True)))


def test_what_is_not_kept_of_an_event_is_not_kept_of_a_line() -> None:
    headers = {"CC": ["bystander"], "BCC": 5, "x-death": 1, "x-delivery-count": 99, "mine": "x"}
    properties = {"expiration": "1", "user_id": "nobody", "delivery_mode": "x", "headers": 1}

    entry = load_line(line(headers=headers, properties={**properties, "priority": 3}), AT)

    assert (entry.headers, entry.properties) == ('{"mine":"x"}', '{"priority":3}')
    assert load_line(line(headers={"CC": "x"}, properties={"zzz": 1}), AT).headers == "{}"


def event(size: int, **headers: Any) -> Entry:
    """Return an event whose own headers and properties have so many bytes."""
    empty = {"big": "", "qw-key": "u1", **headers}
    rest = sent(Outgoing("", "", b"", "id-1", {}, empty))
    table = dump_table({**empty, "big": "y" * (size - rest)})
    return Entry("id-1", "user.created", "u1", AT, table, "{}", b"{}", at=AT)


def test_an_event_that_fills_a_frame_can_be_exported_and_imported() -> None:
    entry = event(MOST_PROPERTIES)

    assert load_line(dump_line(entry), AT) == entry
    with pytest.raises(Unarchivable, match="at most"):
        load_line(dump_line(event(MOST_PROPERTIES + 1)), AT)


def test_the_largest_header_makes_room_for_what_a_replay_adds() -> None:
    message = outgoing_of(event(MOST_PROPERTIES, mine="x"), replay_headers("r1", ["h"], again=True))

    make_fit(message)

    assert sent(message) <= MOST_PROPERTIES
    assert message.headers == {
        "qw-key": "u1",
        "mine": "x",
        "qw-routing-key": "user.created",
        "qw-replay": "r1",
        "qw-replay-handlers": "h",
        "qw-replay-again": "1",
        LEFT_OUT: "big",
    }


def test_what_only_tells_of_the_replay_goes_before_a_header_of_the_publisher() -> None:
    entry = event(MOST_PROPERTIES - 200)
    message = outgoing_of(entry, replay_headers("r" * 100, ["h"], again=False))

    make_fit(message)

    assert sent(message) <= MOST_PROPERTIES
    assert "qw-replay" not in message.headers
    assert message.headers["qw-replay-handlers"] == "h"
    assert message.headers["big"] == load_table(entry.headers)["big"]


def test_what_fits_stays_as_it_is() -> None:
    message = outgoing_of(event(SURELY_FIT), replay_headers("r1", [], again=False))
    before = dict(message.headers)

    make_fit(message)

    assert message.headers == before


def test_many_small_headers_make_room_too() -> None:
    many = {f"header-{n:05}": n for n in range(7275)}
    message = outgoing_of(event(MOST_PROPERTIES, **many), replay_headers("r1", ["h"], again=True))

    make_fit(message)

    assert sent(message) <= MOST_PROPERTIES
    assert message.headers["qw-replay-again"] == "1"
    assert message.headers[LEFT_OUT].startswith("big, header-")


def test_what_cannot_be_encoded_is_left_to_whoever_sends_it() -> None:
    entry = event(MOST_PROPERTIES)._replace(properties='{"priority":"x"}')
    message = outgoing_of(entry, replay_headers("r1", [], again=True))

    make_fit(message)

    assert "big" in message.headers


@pytest.mark.parametrize("character", ["y", "\u00e9", "\u20ac", "\U0001f600"])
def test_what_is_not_looked_at_surely_fits(character: str) -> None:
    name = "n" * 200
    headers = dump_table({"big": character * (SURELY_FIT - 20)})
    assert len(headers) <= SURELY_FIT
    entry = Entry("i" * 1024, name, "k" * 1024, AT, headers, "{}", b"{}", at=AT)

    message = outgoing_of(entry, replay_headers("r" * 100, ["h" * 100] * 20, again=True))

    assert sent(message) <= MOST_PROPERTIES
