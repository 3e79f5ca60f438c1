"""From an event to the wire and back: the same event, whoever is in between."""

from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import amqp
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker import Command, Event, Message
from worker.codec import Codec
from worker.config import Settings
from worker.message import Outgoing
from worker.outcome import DeadLetter
from worker.payload import decoder_for

CODEC = Codec.of("bank", Settings())
CLOUD = replace(CODEC, event_format="cloudevents")
BOTH = pytest.mark.parametrize("codec", [CODEC, CLOUD], ids=["plain", "cloudevents"])


class UserDeposited(Event, name="user.deposited", key="user_id"):
    user_id: str
    amount: Decimal


class Ticked(Event, name="ticked"):
    pass


class SendEmail(Command, name="mailer.send_email", to="mailer", key="user_id"):
    user_id: str


EVENT = UserDeposited(user_id="u1", amount=Decimal("1.50"))


def over_the_wire(outgoing: Outgoing) -> dict[str, Any]:
    """Return the properties of a message as py-amqp reads what py-amqp wrote."""
    sent = amqp.Message(b"", application_headers=outgoing.headers, **outgoing.properties)
    received = amqp.Message()
    received._load_properties(60, sent._serialize_properties(), 0)
    properties: dict[str, Any] = received.properties
    return properties


def received(codec: Codec, outgoing: Outgoing) -> Message:
    decoded = codec.decode(outgoing.body, over_the_wire(outgoing), outgoing.routing_key)
    assert isinstance(decoded, Message), decoded
    return decoded


def reason(
    body: bytes = b"{}",
    codec: Codec = CODEC,
    also: dict[str, Any] | None = None,
    **properties: Any,
) -> str:
    """Return why a message with these properties, a good id and a good name is set aside."""
    good = {"message_id": "id", "type": "user.deposited"}
    decoded = codec.decode(body, {**good, **properties, **(also or {})}, "user.deposited")
    assert isinstance(decoded, DeadLetter), decoded
    return decoded.reason


class TestPublishing:
    def test_an_event_goes_to_the_events_exchange_by_its_name(self) -> None:
        out = CODEC.encode(EVENT)

        assert (out.exchange, out.routing_key) == ("qw.events", "user.deposited")
        assert not out.mandatory

    def test_a_command_goes_to_its_recipient_and_must_arrive(self) -> None:
        out = CODEC.encode(SendEmail(user_id="u1"))

        assert (out.exchange, out.routing_key) == ("qw.commands", "mailer")
        assert out.mandatory

    def test_the_properties_carry_what_they_were_made_for(self) -> None:
        out = CODEC.encode(EVENT)

        assert out.properties == {
            "message_id": EVENT.event_id,
            "type": "user.deposited",
            "timestamp": int(EVENT.timestamp.timestamp()),
            "app_id": "bank",
            "correlation_id": EVENT.event_id,
            "content_type": "application/json",
            "content_encoding": "utf-8",
            "delivery_mode": 2,
        }
        assert out.headers == {"qw-key": "u1"}

    def test_the_body_is_the_payload_alone(self) -> None:
        assert CODEC.encode(EVENT).body == b'{"user_id":"u1","amount":"1.50"}'

    def test_what_has_no_key_spreads_by_its_id(self) -> None:
        event = Ticked()

        assert CODEC.encode(event).headers == {"qw-key": event.event_id}

    def test_a_publisher_may_say_more(self) -> None:
        out = CODEC.encode(
            EVENT,
            correlation_id="story",
            causation_id="parent",
            headers={"traceparent": "00-…"},
            priority=5,
            transient=True,
        )

        assert out.properties["correlation_id"] == "story"
        assert out.properties["priority"] == 5
        assert out.properties["delivery_mode"] == 1
        assert out.headers["qw-causation-id"] == "parent"
        assert out.headers["traceparent"] == "00-…"

    def test_the_headers_of_a_publisher_stay_its_own(self) -> None:
        headers = {"mine": 1}
        CODEC.encode(EVENT, headers=headers)

        assert headers == {"mine": 1}

    def test_what_consumers_would_not_take_is_not_sent(self) -> None:
        with pytest.raises(ValueError, match="max_message_bytes"):
            replace(CODEC, max_bytes=10).encode(EVENT)

    @pytest.mark.parametrize("thing", [{"user_id": "u1"}, UserDeposited, "user.deposited", None])
    def test_what_is_no_event_is_not_sent(self, thing: Any) -> None:
        with pytest.raises((TypeError, AttributeError)):
            CODEC.encode(thing)


class TestRoundTrip:
    @BOTH
    def test_an_event_arrives_as_it_was_published(self, codec: Codec) -> None:
        message = received(codec, codec.encode(EVENT))

        assert (message.id, message.name, message.key) == (EVENT.event_id, EVENT.name, "u1")
        assert decoder_for(UserDeposited)(message) == EVENT

    @BOTH
    def test_a_consumer_need_not_know_the_format(self, codec: Codec) -> None:
        message = received(CODEC, codec.encode(EVENT))

        assert decoder_for(UserDeposited)(message) == EVENT

    @BOTH
    def test_a_time_that_its_id_does_not_tell_arrives_to_the_microsecond(
        self, codec: Codec
    ) -> None:
        moment = datetime(1969, 12, 31, 23, 59, 59, 123456, tzinfo=UTC) + timedelta(days=20_000)
        event = replace(EVENT, event_id="not a uuid", timestamp=moment)

        assert decoder_for(UserDeposited)(received(codec, codec.encode(event))) == event

    @BOTH
    def test_what_has_no_key_arrives_without_one(self, codec: Codec) -> None:
        assert received(codec, codec.encode(Ticked())).key is None

    @BOTH
    @given(
        user=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=1024),
        amount=st.decimals(allow_nan=False, allow_infinity=False),
    )
    def test_any_text_and_any_amount_arrive(self, codec: Codec, user: str, amount: Decimal) -> None:
        event = UserDeposited(user_id=user, amount=amount)
        message = received(codec, codec.encode(event))

        assert message.key == user
        decoded = decoder_for(UserDeposited)(message)
        assert (decoded.user_id, decoded.amount) == (user, amount)
        assert decoded == event or amount.is_signed()


class TestCloudEvents:
    def test_what_is_published_is_one_in_structured_mode(self) -> None:
        out = CLOUD.encode(EVENT)

        assert out.properties["content_type"] == "application/cloudevents+json"
        assert orjson.loads(out.body) == {
            "specversion": "1.0",
            "id": EVENT.event_id,
            "type": "user.deposited",
            "source": "bank",
            "time": EVENT.timestamp.isoformat(),
            "datacontenttype": "application/json",
            "data": {"user_id": "u1", "amount": "1.50"},
            "partitionkey": "u1",
        }

    def decode(self, body: object, **properties: Any) -> Message | DeadLetter:
        text = body if isinstance(body, bytes) else orjson.dumps(body)
        kind = {"content_type": "application/cloudevents+json; charset=UTF-8"}
        return CODEC.decode(text, {**kind, **properties})

    def test_a_foreign_one_is_taken_by_its_own_words(self) -> None:
        message = self.decode(
            {
                "specversion": "1.0",
                "id": "A234",
                "source": "https://example.org",
                "type": "com.example.someevent",
                "subject": "s",
                "time": "2018-04-05T17:31:00Z",
                "partitionkey": "p",
                "comexampleextension": 5,
                "data": [1],
            },
            message_id="not this one",
            type="nor this",
        )

        assert isinstance(message, Message)
        assert (message.id, message.name, message.key) == ("A234", "com.example.someevent", "p")
        assert message.body == b"[1]"
        assert message.timestamp == datetime(2018, 4, 5, 17, 31, tzinfo=UTC)

    def test_binary_data_is_base64(self) -> None:
        message = self.decode({"specversion": "1.0", "id": "a", "type": "t", "data_base64": "e30="})

        assert isinstance(message, Message)
        assert message.body == b"{}"

    def test_without_data_the_payload_is_null(self) -> None:
        message = self.decode({"specversion": "1.0", "id": "a", "type": "t"})

        assert isinstance(message, Message)
        assert message.body == b"null"

    def test_the_header_gives_a_key_that_it_does_not_have(self) -> None:
        body = {"specversion": "1.0", "id": "a", "type": "t"}
        message = self.decode(body, application_headers={"qw-key": "k"})

        assert isinstance(message, Message)
        assert message.key == "k"

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"[]",
            b"{",
            b"\xff",
            b"[" * 100_000,
            {"specversion": "0.3", "id": "a", "type": "t"},
            {"specversion": "1.0", "type": "t"},
            {"specversion": "1.0", "id": "", "type": "t"},
            {"specversion": "1.0", "id": 5, "type": "t"},
            {"specversion": "1.0", "id": "a"},
            {"specversion": "1.0", "id": "a", "type": "t", "time": "soon"},
            {"specversion": "1.0", "id": "a", "type": "t", "data_base64": "%"},
            {"specversion": "1.0", "id": "a" * 2000, "type": "t"},
            {"specversion": "1.0", "id": "a", "type": "t", "partitionkey": "a" * 2000},
        ],
    )
    def test_what_is_none_is_set_aside(self, body: object) -> None:
        assert isinstance(self.decode(body), DeadLetter)


class TestForeignPublishers:
    def test_an_id_and_a_name_are_all_that_it_takes(self) -> None:
        message = CODEC.decode(b"[]", {"message_id": "1", "type": "user.deposited"})

        assert isinstance(message, Message)
        assert (message.id, message.name, message.key, message.body) == (
            "1",
            "user.deposited",
            None,
            b"[]",
        )

    @pytest.mark.parametrize(
        ("settings", "properties"),
        [
            ({"id_from": "header:event-id"}, {"application_headers": {"event-id": "e1"}}),
            ({"id_from": "property:correlation_id"}, {"correlation_id": "e1"}),
            ({"id_from": "body:meta.id"}, {}),
        ],
    )
    def test_settings_say_where_the_id_lies(
        self, settings: dict[str, str], properties: dict[str, Any]
    ) -> None:
        codec = replace(CODEC, **settings)  # type: ignore[arg-type] # mypy cannot see into the dict
        message = codec.decode(b'{"meta": {"id": "e1"}}', {"type": "t", **properties})

        assert isinstance(message, Message)
        assert message.id == "e1"

    def test_name_and_key_can_lie_elsewhere_too(self) -> None:
        codec = replace(CODEC, name_from="routing-key", key_from="body:user")
        message = codec.decode(b'{"user": 7}', {"message_id": "1"}, "user.deposited")

        assert isinstance(message, Message)
        assert (message.name, message.key) == ("user.deposited", "7")

    def test_a_body_without_an_id_can_be_known_by_its_hash(self) -> None:
        codec = replace(CODEC, id_from="body-hash")
        ids = []
        for body in (b"a", b"a", b"b"):
            message = codec.decode(body, {"type": "t"})
            assert isinstance(message, Message)
            ids.append(message.id)

        assert ids[0] == ids[1] != ids[2]

    @pytest.mark.parametrize(
        ("key", "read"), [(5, "5"), (Decimal("1.5"), "1.5"), ("", None), (None, None), ("id", None)]
    )
    def test_a_key_is_text_or_a_number(self, key: object, read: str | None) -> None:
        properties = {"message_id": "id", "type": "t", "application_headers": {"qw-key": key}}
        message = CODEC.decode(b"{}", properties)

        assert isinstance(message, Message)
        assert message.key == read

    @pytest.mark.parametrize("kind", [None, "", "application/json; charset=utf-8", "text/json"])
    def test_json_goes_by_many_names(self, kind: str | None) -> None:
        properties = {"message_id": "id", "type": "t", "content_type": kind}

        assert isinstance(CODEC.decode(b"{}", properties), Message)


class TestDeadLetters:
    """Each says in plain words what is wrong, and where."""

    def test_no_id(self) -> None:
        assert reason(message_id=None) == "it has no id (property:message_id)"
        assert reason(message_id="") == "it has no id (property:message_id)"

    def test_no_name(self) -> None:
        assert reason(type=None) == "it has no name (property:type)"

    def test_an_id_that_is_no_text(self) -> None:
        codec = replace(CODEC, id_from="header:id")

        assert reason(codec=codec, application_headers={"id": {"a": 1}}) == (
            "its id (header:id) is {'a': 1}; it must be a text"
        )

    def test_a_key_that_is_neither_text_nor_number(self) -> None:
        told = reason(application_headers={"qw-key": [1]})

        assert told == "the key (header:qw-key) is [1]; it must be a text"

    def test_a_body_that_is_too_long(self) -> None:
        assert "1048577 bytes; at most 1048576" in reason(b" " * (1024 * 1024 + 1))

    def test_a_content_that_is_no_json(self) -> None:
        assert reason(content_type="image/png") == "the content type 'image/png' is not JSON"

    def test_an_encoding_that_is_not_understood(self) -> None:
        assert reason(content_encoding="gzip") == "the content encoding 'gzip' is not understood"

    def test_properties_that_cannot_be_decoded(self) -> None:
        assert reason(also={"qw-undecodable": "bad table"}) == (
            "its AMQP properties cannot be decoded: bad table"
        )

    def test_a_body_without_the_identity_that_should_lie_in_it(self) -> None:
        codec = replace(CODEC, id_from="body:id")

        assert reason(b"[]", codec) == "it has no id (body:id)"
        assert "the body is not JSON" in reason(b"{", codec)

    @pytest.mark.parametrize("where", ["message_id", "type"])
    def test_an_identity_that_would_fill_the_store(self, where: str) -> None:
        assert "longer than 1024 characters" in reason(also={where: "x" * 1025})

    def test_no_reason_is_longer_than_a_line(self) -> None:
        assert len(reason(content_type="x" * 100_000)) < 200


def test_an_id_that_is_not_text_in_utf8_is_still_one_id() -> None:
    """py-amqp hands surrogates on; they must not make the runtime stumble."""
    message = CODEC.decode(b"{}", {"message_id": "\ud800", "type": "t"})

    assert isinstance(message, Message)


def test_a_child_carries_the_story_on() -> None:
    parent_id = str(uuid.uuid4())
    out = CODEC.encode(EVENT, message_id="child", correlation_id="story", causation_id=parent_id)
    message = received(CODEC, out)

    assert message.id == "child"
    assert message.properties["correlation_id"] == "story"
    assert message.headers["qw-causation-id"] == parent_id
