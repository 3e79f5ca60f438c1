"""Archived events keep what they are: as rows, as messages sent again, as lines."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.archive.entry import Entry, Unarchivable, entry_of, moment_of, outgoing_of
from worker.archive.lines import dump_line, load_line
from worker.archive.tables import dump_table, load_table
from worker.aside import published_as
from worker.barrier import BARRIER, is_barrier
from worker.codec import Codec
from worker.config import Settings
from worker.dedup.base import fingerprint
from worker.message import BARRIER_HEADER, GENERATION_HEADER, Message
from worker.seal import SEAL, is_marker
from worker.transport.arrival import Arrival

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(max_size=8)
    | st.datetimes(timezones=st.just(UTC))
    | st.decimals(allow_nan=False, allow_infinity=False)
)
NAMES = st.text(max_size=8) | st.sampled_from(["$bytes", "$table", "$"])
VALUES = st.recursive(SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(NAMES, v))
AT = 1_700_000_000_000_000


def received(body: bytes, properties: dict[str, Any], **settings: Any) -> Message:
    found = Codec.of("bank", Settings(**settings)).decode(body, properties)
    assert isinstance(found, Message), found
    return found


def again(entry: Entry, **settings: Any) -> Message:
    """Return what is received of an event that is sent again."""
    sent = outgoing_of(entry, {})
    assert sent.mandatory
    return received(sent.body, {**sent.properties, "application_headers": sent.headers}, **settings)


@given(st.dictionaries(NAMES, VALUES, max_size=4))
def test_a_table_comes_back_as_it_was(table: dict[str, Any]) -> None:
    assert load_table(dump_table(table)) == table


@pytest.mark.parametrize(
    "value",
    [float("inf"), -0.0, Decimal("1.50"), b"\xff", 2**80, 2**63, "\ud800", "\0", "$", "\\ud"],
)
def test_odd_values_come_back_as_they_were(value: object) -> None:
    assert repr(load_table(dump_table({"a": value}))["a"]) == repr(value)


@pytest.mark.parametrize(
    "text", ["[]", "1", '{"$what": 1}', '{"$bytes": 1}', "{", '{"$time": "x"}']
)
def test_what_is_no_table_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"table|unexpected|Invalid"):
        load_table(text)


@pytest.mark.parametrize("event_format", ["plain", "cloudevents"])
def test_an_event_that_is_sent_again_is_the_same_event(event_format: str) -> None:
    codec = Codec.of("web", Settings(event_format=event_format))
    body = b'{"amount": 1.10, "who": "\xc3\xa9"}'
    moment = datetime(2026, 1, 31, 12, 0, 0, 123456, tzinfo=UTC)
    sent = codec.pack(
        "user.deposited",
        body,
        message_id="id-1",
        key="u1",
        timestamp=moment,
        correlation_id="c-1",
        headers={"traceparent": "00-1", "n": 5, "raw": b"\x00"},
        priority=3,
    )
    properties = {**sent.properties, "application_headers": {**sent.headers, "BCC": ["qw-slot-1"]}}
    first = received(sent.body, properties)

    entry = entry_of(first, AT)
    second = again(entry)

    assert (second.id, second.name, second.key) == (first.id, first.name, first.key)
    assert second.timestamp == first.timestamp == moment_of(entry.time) == moment
    assert fingerprint(second.body) == fingerprint(first.body) == fingerprint(body)
    assert "BCC" not in second.headers
    for name in ("traceparent", "n", "raw", "qw-key"):
        assert second.headers[name] == first.headers[name]
    for name in ("correlation_id", "priority", "app_id", "content_type"):
        assert second.properties[name] == first.properties[name]


def test_what_one_way_through_a_service_has_left_on_an_event_is_not_kept() -> None:
    """A dead letter of the archive that returned to it, say, returns to no handler of another."""
    own = {"qw-key": "u1", "qw-generation": 3, "qw-deadline": 1}
    left = {"qw-dead-handler": "archive", "qw-parked-only": "x", "qw-replay-handlers": "y"}
    codec = Codec.of("web", Settings())
    sent = codec.pack("user.deposited", b"1", message_id="id-1", headers={**own, **left}, key="u1")
    message = received(sent.body, {**sent.properties, "application_headers": sent.headers})

    entry = entry_of(message, AT)

    assert load_table(entry.headers) == own
    line = dump_line(entry._replace(headers=dump_table({**own, **left})))
    assert load_table(load_line(line, AT).headers) == own
    assert not left.keys() & outgoing_of(entry._replace(headers=dump_table(left)), {}).headers


@pytest.mark.parametrize("name", [BARRIER, SEAL, "user.deposited"])
def test_somebody_s_event_that_looks_like_the_runtime_s_is_none_when_sent_again(name: str) -> None:
    """A replay sends it by the default exchange, as the runtime does its own."""
    headers = {BARRIER_HEADER: "mine", GENERATION_HEADER: 1}
    sent = Codec.of("web", Settings()).pack(name, b"1", message_id="id-1", headers=headers)
    first = received(sent.body, {**sent.properties, "application_headers": sent.headers})

    second = again(entry_of(first, AT))

    told = {**second.properties, "application_headers": second.headers}
    assert not is_barrier(told, "")
    assert not is_marker(told, "")
    is_like_one = name in {BARRIER, SEAL}
    assert (
        second.headers.items() >= (dict.fromkeys(headers, "") if is_like_one else headers).items()
    )


def test_identity_is_found_again_wherever_the_settings_say_that_it_lies() -> None:
    settings = {
        "id_from": "header:x-id",
        "name_from": "property:content_encoding",
        "key_from": "body:user.id",
    }
    properties = {
        "message_id": "not this",
        "content_encoding": "utf-8",
        "application_headers": {"x-id": "mine"},
    }
    first = received(b'{"user": {"id": 7}}', properties, **settings)

    second = again(entry_of(first, AT), **settings)

    assert (second.id, second.name, second.key) == ("mine", "utf-8", "7")
    assert second.properties["message_id"] == "not this"


def test_a_name_that_is_the_routing_key_is_found_by_whoever_gets_it_from_its_own_queue() -> None:
    codec = Codec.of("bank", Settings(name_from="routing-key"))
    first = codec.decode(b"{}", {"message_id": "a"}, "user.deposited")
    assert isinstance(first, Message)

    sent = outgoing_of(entry_of(first, AT), {})

    properties = {**sent.properties, "application_headers": sent.headers}
    arrival = Arrival(None, 1, False, "", "bank.g1.0", properties, sent.body)
    second = codec.decode(sent.body, properties, published_as(arrival))
    assert isinstance(second, Message), second
    assert second.name == "user.deposited"


def test_an_id_that_no_property_can_hold_is_found_where_it_was() -> None:
    settings = {"id_from": "header:x-id", "name_from": "header:x-name"}
    long = "\u00e9" * 400
    properties = {"application_headers": {"x-id": long, "x-name": long}}
    first = received(b"{}", properties, **settings)

    entry = entry_of(first, AT)

    assert "message_id" not in outgoing_of(entry, {}).properties
    second = again(entry, **settings)
    assert (second.id, second.name) == (long, long)


def test_a_cloudevent_from_before_all_calendars_is_sent_again_without_a_time() -> None:
    body = b'{"specversion": "1.0", "id": "a", "type": "b", "source": "c", "data": {}}'
    headers = {"qw-timestamp": "0001-01-01T00:00:00+01:00"}
    first = received(
        body,
        {"content_type": "application/cloudevents+json", "application_headers": headers},
    )
    entry = entry_of(first, AT)
    with pytest.raises(OverflowError):
        moment_of(entry.time)

    second = again(entry)

    assert (second.id, second.name, second.body) == ("a", "b", b"{}")
    assert second.timestamp == first.timestamp


def test_an_event_without_a_time_has_that_of_its_archiving() -> None:
    message = received(b"{}", {"message_id": "a", "type": "b"})

    assert entry_of(message, AT).time == AT


@pytest.mark.parametrize(
    ("body", "properties"),
    [
        (b"{}", {"message_id": "a\0", "type": "b"}),
        (b"{}", {"message_id": "a", "type": "\ud800"}),
        (b"{}", {"message_id": "a", "type": "b", "application_headers": {"qw-key": "\0"}}),
        (b"{}", {"message_id": "a", "type": "b", "application_headers": {"x": object()}}),
        (b"no", {"message_id": "a", "type": "b"}),
        (b'"\xff"', {"message_id": "a", "type": "b"}),
    ],
)
def test_what_no_database_or_line_could_hold_is_refused(
    body: bytes, properties: dict[str, Any]
) -> None:
    with pytest.raises(Unarchivable):
        entry_of(received(body, properties), AT)


def plain(**facts: Any) -> Entry:
    return Entry("id-1", "user.created", "u1", AT - 1, "{}", "{}", b"{}", at=AT)._replace(**facts)


@pytest.mark.parametrize(
    "entry",
    [
        plain(),
        plain(key=None, body=b'{"a":\n 1.10}'),
        plain(headers='{"a":{"$bytes":"AA=="}}', properties='{"priority":5}'),
        plain(body=b'{"big": 123456789012345678901234567890}'),
    ],
)
def test_a_line_holds_everything(entry: Entry) -> None:
    line = dump_line(entry)

    assert line.count(b"\n") == 1
    assert load_line(line, AT) == entry


def test_a_line_to_publish_can_be_imported() -> None:
    line = b'{"name": "user.created", "id": "id-1", "key": "u1", "payload": {"a": 1}}'

    assert load_line(line, AT) == plain(time=AT, body=b'{"a": 1}')


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"to": "mailer"}, "command"),
        ({"id": ""}, "id is empty"),
        ({"id": None}, "id"),
        ({"payload": None, "payload_text": "no"}, "not JSON"),
        ({"nmae": "x"}, "nmae"),
        ({"headers": []}, "table"),
        ({"key": "\0"}, "NUL"),
        ({"payload_text": "{}"}, "either"),
    ],
)
def test_a_line_that_is_no_event_is_refused(change: dict[str, Any], told: str) -> None:
    line = {"id": "id-1", "name": "user.created", "payload": {}} | change
    if change.get("payload", 1) is None:
        del line["payload"]

    with pytest.raises(Unarchivable, match=told):
        load_line(orjson.dumps(line), AT)
