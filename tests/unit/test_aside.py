"""A message that is set aside keeps what its publisher sent, and says why it is there."""

from __future__ import annotations

import re
from struct import pack
from typing import Any

import amqp
import pytest

from frames import FRAME_MAX, deliver
from worker.aside import dead_letter_facts, redirect, set_aside
from worker.barrier import BARRIER, is_barrier
from worker.message import BARRIER_HEADER, GENERATION_HEADER, UNPARK_HEADER, Outgoing
from worker.parking import MARKER, unpark_of
from worker.seal import SEAL, is_marker
from worker.transport.arrival import Arrival

FACTS = dead_letter_facts(
    "failed at attempt 5: no", queue="bank.g1.3", handler="record", attempts=5, detail="Traceback"
)


def raw_of(properties: dict[str, Any], headers: dict[str, Any]) -> bytes:
    message = amqp.Message(b"", application_headers=headers, **properties)
    encoded: bytes = message._serialize_properties()
    return encoded


def arrival(
    headers: dict[str, Any] | None = None, *, decoded: bool = False, **properties: Any
) -> Arrival:
    """Return a delivery, as AMQP or (``decoded``) as the embedded broker hands it on."""
    message = deliver(b'{"a": 1}', raw_of(properties, headers or {}))
    if decoded:
        message.raw = None
    return message


def arrived(outgoing: Outgoing) -> Arrival:
    """Return what comes out of the queue that ``outgoing`` was put into."""
    raw = outgoing.raw
    return deliver(
        outgoing.body,
        raw if raw is not None else raw_of(outgoing.properties, outgoing.headers),
        outgoing.routing_key,
    )


either = pytest.mark.parametrize("decoded", [False, True], ids=["amqp", "embedded"])


@either
def test_a_dead_letter_says_why_where_and_when(decoded: bool) -> None:
    letter = set_aside(arrival(message_id="id-1", decoded=decoded), "id-1", "bank.dlq", FACTS)
    headers = arrived(letter).properties["application_headers"]

    assert (letter.exchange, letter.routing_key) == ("", "bank.dlq")
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", headers.pop("qw-dead-time"))
    assert headers == {
        "qw-dead-reason": "failed at attempt 5: no",
        "qw-dead-queue": "bank.g1.3",
        "qw-dead-handler": "record",
        "qw-dead-attempts": 5,
        "qw-dead-detail": "Traceback",
    }


@either
def test_body_headers_and_properties_stay_as_they_came(decoded: bool) -> None:
    given = arrival(
        {"qw-key": "u1", "mine": [1, {"a": None}]},
        message_id="id-1",
        type="user.deposited",
        timestamp=1,
        decoded=decoded,
    )
    letter = arrived(set_aside(given, "id-1", "bank.dlq", FACTS))

    assert letter.body == b'{"a": 1}'
    assert letter.properties["message_id"] == "id-1"
    assert letter.properties["type"] == "user.deposited"
    assert letter.properties["timestamp"] == 1
    assert letter.properties["application_headers"]["mine"] == [1, {"a": None}]


@either
def test_what_would_harm_it_in_its_new_place_is_renamed_or_dropped(decoded: bool) -> None:
    given = arrival(
        {"CC": ["a"], "BCC": ["b"]}, expiration="1000", user_id="someone", decoded=decoded
    )
    letter = arrived(set_aside(given, "id-1", "bank.dlq", FACTS))
    headers = letter.properties["application_headers"]

    assert "expiration" not in letter.properties
    assert "user_id" not in letter.properties
    assert "CC" not in headers
    assert "BCC" not in headers
    assert (headers["qw-dead-CC"], headers["qw-dead-BCC"]) == (["a"], ["b"])


@either
def test_a_letter_that_is_set_aside_again_tells_the_last_reason(decoded: bool) -> None:
    first = arrived(set_aside(arrival(decoded=decoded), "id-1", "bank.dlq", FACTS))
    if decoded:
        first.raw = None
    second = arrived(
        set_aside(first, "id-1", "bank.dlq", dead_letter_facts("again", queue="bank.g1.3"))
    )

    assert second.properties["application_headers"]["qw-dead-reason"] == "again"


@either
def test_on_its_way_back_it_loses_what_was_added(decoded: bool) -> None:
    letter = arrived(set_aside(arrival({"mine": 1}, decoded=decoded), "id-1", "bank.dlq", FACTS))
    if decoded:
        letter.raw = None
    back = redirect(
        letter, "id-1", exchange="", routing_key="bank.g1.3", facts={}, drop_prefix="qw-dead-"
    )

    assert arrived(back).properties["application_headers"] == {"mine": 1}


@either
@pytest.mark.parametrize("kind", [BARRIER, SEAL, MARKER, "mine"])
@pytest.mark.parametrize("exchange", ["qw.events", ""])
def test_somebody_s_event_does_not_become_one_of_the_runtime_s_on_its_way(
    kind: str, exchange: str, decoded: bool
) -> None:
    headers = {BARRIER_HEADER: "b1", GENERATION_HEADER: 1, UNPARK_HEADER: 5}
    came = arrival(headers, decoded=decoded, type=kind)
    came.exchange = exchange
    moved = arrived(redirect(came, "id-1", exchange="", routing_key="bank.g1.3", facts={}))

    is_like_one = kind != "mine"
    is_one = (
        is_barrier(moved.properties, "")
        or is_marker(moved.properties, "")
        or unpark_of(moved.properties, "", "bank") is not None
    )
    assert is_one == (is_like_one and not exchange), "what the runtime sent itself stays what it is"
    if not is_like_one:
        assert moved.properties["application_headers"] == headers


def test_nor_where_the_broker_itself_has_set_it_aside() -> None:
    """By the default exchange too, but its story tells how it had come."""
    deaths = [
        {"queue": "bank.other", "exchange": "", "count": 1},
        {"queue": "bank.g1.3", "exchange": "qw.events", "count": 1},
    ]
    came = arrival({GENERATION_HEADER: 1, "x-death": deaths}, decoded=True, type=SEAL)
    came.exchange = ""
    moved = arrived(redirect(came, "id-1", exchange="", routing_key="bank.g1.3", facts={}))
    assert not is_marker(moved.properties, "")


def test_properties_that_cannot_be_decoded_pass_byte_for_byte() -> None:
    table = b"\x03bad" + b"S" + pack(">I", 2) + b"\xff\xfe"
    raw = pack(">HI", 0x2000, len(table)) + table
    letter = set_aside(deliver(b"\xff", raw), "", "bank.dlq", FACTS)

    assert letter.raw is not None
    assert table in letter.raw
    assert letter.body == b"\xff"


def test_properties_that_are_malformed_are_shown_as_hexadecimal() -> None:
    raw = pack(">HI", 0x2000, 4) + b"\x01h?!"
    headers = arrived(set_aside(deliver(b"", raw), "", "bank.dlq", FACTS)).properties[
        "application_headers"
    ]

    assert headers["qw-dead-properties"] == raw.hex()
    assert "unknown type" in headers["qw-dead-malformed"]
    assert headers["qw-dead-reason"] == "failed at attempt 5: no"


@either
def test_text_that_is_no_unicode_is_made_legible(decoded: bool) -> None:
    facts = dead_letter_facts("bad \udcff", queue="bank.g1.3")
    letter = arrived(set_aside(arrival(decoded=decoded), "id-1", "bank.dlq", facts))

    assert letter.properties["application_headers"]["qw-dead-reason"] == "bad ?"


class TestRoom:
    """A content header must fit into one frame, or the broker ends the connection, for ever."""

    @either
    @pytest.mark.parametrize("size", [1000, 100_000, 125_000, 130_000, 130_900])
    def test_it_always_fits(self, size: int, decoded: bool) -> None:
        facts = {**FACTS, "qw-dead-detail": "d" * 16_000}
        given = arrival({"mine": "x" * size}, message_id="id-1", decoded=decoded)
        letter = arrived(set_aside(given, "id-1", "bank.dlq", facts))
        raw = letter.raw

        assert raw is not None
        assert len(raw) <= FRAME_MAX - 20
        assert letter.properties["message_id"] == "id-1"
        assert letter.properties["application_headers"]["qw-dead-reason"] == FACTS["qw-dead-reason"]

    @either
    def test_the_traceback_goes_before_the_publishers_headers(self, decoded: bool) -> None:
        facts = {**FACTS, "qw-dead-detail": "d" * 16_000}
        given = arrival({"mine": "x" * 120_000}, decoded=decoded)
        headers = arrived(set_aside(given, "", "bank.dlq", facts)).properties["application_headers"]

        assert len(headers["mine"]) == 120_000
        assert "qw-dead-detail" not in headers

    @either
    def test_headers_that_leave_no_room_at_all_are_left_out_and_it_says_so(
        self, decoded: bool
    ) -> None:
        given = arrival({"mine": "x" * 130_900}, decoded=decoded)
        headers = arrived(set_aside(given, "", "bank.dlq", FACTS)).properties["application_headers"]

        assert "mine" not in headers
        assert "the publisher's headers" in headers["qw-dead-left-out"]

    @pytest.mark.parametrize(
        ("properties", "headers"),
        [
            ({"message_id": "\N{REPLACEMENT CHARACTER}" * 200}, {}),
            ({}, {"huge": 2**70}),
            ({}, {"n" * 300: 1}),
            ({"priority": 1000}, {"set": {1, 2}}),
        ],
    )
    def test_what_py_amqp_cannot_encode_is_left_out_and_it_says_so(
        self, properties: dict[str, Any], headers: dict[str, Any]
    ) -> None:
        given = arrival(decoded=True)
        given.properties = {**properties, "application_headers": headers}
        letter = arrived(set_aside(given, "id-1", "bank.dlq", FACTS))

        assert letter.body == b'{"a": 1}'
        assert "qw-dead-left-out" in letter.properties["application_headers"]
