"""Events and commands: classes that say what they are, and cannot be changed once they happened."""

from __future__ import annotations

import dataclasses
import pickle
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker import App, Command, ConfigurationError, Event, Message
from worker.ids import new_id, time_of_id
from worker.message import key_of, schema_of
from worker.names import check_name


class UserDeposited(Event, name="user.deposited", key="user_id"):
    user_id: str
    amount: Decimal = Decimal(0)


class SendEmail(Command, name="mailer.send_email", to="mailer", key=lambda c: c.address.lower()):
    address: str


class Ticked(Event):
    pass


class TestDefining:
    def test_a_class_knows_its_name_recipient_key_and_fields(self) -> None:
        schema = schema_of(SendEmail)

        assert schema is not None
        assert (schema.name, schema.to) == ("mailer.send_email", "mailer")
        assert schema.fields == ("address",)
        assert SendEmail.name == "mailer.send_email"

    def test_an_event_has_no_recipient(self) -> None:
        schema = schema_of(UserDeposited)

        assert schema is not None
        assert schema.to is None

    def test_without_a_name_it_is_called_like_its_class(self) -> None:
        assert Ticked.name == "Ticked"

    def test_the_base_classes_are_no_events_themselves(self) -> None:
        assert schema_of(Event) is None
        assert schema_of(Command) is None
        assert schema_of("user.deposited") is None

    def test_an_event_may_extend_another(self) -> None:
        class UserDepositedTwice(UserDeposited, name="user.deposited_twice", key="user_id"):
            times: int = 2

        event = UserDepositedTwice(user_id="u1")
        assert (event.name, event.times) == ("user.deposited_twice", 2)
        assert UserDeposited.name == "user.deposited"

    @pytest.mark.parametrize("field", ["event_id", "timestamp", "name"])
    def test_a_field_cannot_have_a_name_that_every_event_has(self, field: str) -> None:
        with pytest.raises(ConfigurationError, match=f"'{field}' is the base class's own"):
            type("Wrong", (Event,), {"__annotations__": {field: str}})

    def test_a_key_that_is_no_field_is_a_mistake(self) -> None:
        with pytest.raises(ConfigurationError, match=r"'usr' is none of its fields \(user_id\)"):

            class Wrong(Event, key="usr"):
                user_id: str

    def test_a_word_that_no_class_takes_is_told_with_those_that_there_are(self) -> None:
        with pytest.raises(ConfigurationError, match=r"revison= is not known.*revision="):

            class Misspelt(Event, key="user_id", revison="number"):
                user_id: str

    def test_a_mixin_has_words_of_its_own(self) -> None:
        class Tagged:
            tag = ""

            def __init_subclass__(cls, tag: str = "", **others: object) -> None:
                super().__init_subclass__(**others)
                cls.tag = tag

        class Mixed(Event, Tagged, name="mixed", tag="blue"):
            pass

        assert (Mixed.name, Mixed.tag) == ("mixed", "blue")

    @pytest.mark.parametrize(
        "name", ["", "user deposited", "user.*", "user.#", "a\0", "x" * 201, 5]
    )
    def test_a_name_that_cannot_be_a_routing_key_is_a_mistake(self, name: Any) -> None:
        with pytest.raises(ConfigurationError):
            check_name(name, "here")

        with pytest.raises(ConfigurationError):
            type("Wrong", (Event,), {}, name=name)

    def test_a_command_needs_a_recipient(self) -> None:
        with pytest.raises(TypeError, match="to"):
            type("Wrong", (Command,), {})
        with pytest.raises(ConfigurationError):
            type("Wrong", (Command,), {}, to="")

    @pytest.mark.parametrize("name", ["", "a b", "a/b", "x" * 61, "a*"])
    def test_a_service_has_a_name_that_queues_can_have(self, name: str) -> None:
        with pytest.raises(ConfigurationError):
            App(name)


class TestBeing:
    def test_it_is_frozen(self) -> None:
        event = UserDeposited(user_id="u1")

        with pytest.raises(dataclasses.FrozenInstanceError):
            event.user_id = "u2"  # type: ignore[misc] # that is the point

    def test_its_fields_are_given_by_name(self) -> None:
        with pytest.raises(TypeError):
            UserDeposited("u1")  # type: ignore[call-arg] # that is the point

    def test_it_has_an_id_and_the_time_of_that_id(self) -> None:
        before = datetime.now(UTC) - timedelta(seconds=1)
        event = Ticked()

        assert event.timestamp == time_of_id(event.event_id)
        assert before < event.timestamp < datetime.now(UTC) + timedelta(seconds=1)
        assert Ticked().event_id != event.event_id

    def test_a_given_id_and_time_stay(self) -> None:
        moment = datetime(2020, 1, 2, tzinfo=UTC)
        event = Ticked(event_id="mine", timestamp=moment)

        assert (event.event_id, event.timestamp) == ("mine", moment)

    def test_a_time_without_a_zone_is_refused(self) -> None:
        with pytest.raises(ValueError, match="no time zone"):
            Ticked(timestamp=datetime(2020, 1, 2))  # noqa: DTZ001 - that is the point

    def test_a_class_may_check_its_fields_when_it_is_made(self) -> None:
        class Positive(Event):
            amount: int

            def __post_init__(self) -> None:
                assert self.event_id, "the base is ready by now"
                if self.amount <= 0:
                    raise ValueError("amount must be positive")

        assert Positive(amount=1).amount == 1
        with pytest.raises(ValueError, match="positive"):
            Positive(amount=0)

    def test_it_can_be_copied_with_a_change(self) -> None:
        event = UserDeposited(user_id="u1")
        changed = dataclasses.replace(event, amount=Decimal(5))

        assert (changed.user_id, changed.amount) == ("u1", Decimal(5))
        assert changed.event_id == event.event_id

    def test_it_survives_pickle(self) -> None:
        event = UserDeposited(user_id="u1")

        assert pickle.loads(pickle.dumps(event)) == event  # noqa: S301 - our own bytes


class TestKeys:
    def test_a_key_is_a_field(self) -> None:
        assert key_of(UserDeposited(user_id="u1")) == "u1"

    def test_a_key_is_a_function_of_the_event(self) -> None:
        assert key_of(SendEmail(address="A@Example.org")) == "a@example.org"

    def test_without_a_key_order_is_not_promised(self) -> None:
        assert key_of(Ticked()) is None

    def test_a_key_is_text_whatever_the_field_is(self) -> None:
        class Moved(Event, key="account"):
            account: int

        assert key_of(Moved(account=7)) == "7"
        assert key_of(Moved(account=0)) == "0"

    @pytest.mark.parametrize("nothing", [None, ""])
    def test_a_key_that_is_missing_is_an_error_of_the_publisher(self, nothing: Any) -> None:
        with pytest.raises(ValueError, match="a key orders events"):
            key_of(UserDeposited(user_id=nothing))


def message(
    properties: dict[str, Any], headers: dict[str, Any] | None = None, id_: str = "x"
) -> Message:
    return Message(id_, "user.deposited", None, b"{}", headers or {}, properties)


class TestTimestamps:
    def test_a_time_of_whole_seconds_is_read_from_the_property(self) -> None:
        assert message({"timestamp": 1_577_923_200}).timestamp == datetime(2020, 1, 2, tzinfo=UTC)

    def test_some_clients_give_a_date(self) -> None:
        naive = datetime(2020, 1, 2)  # noqa: DTZ001 - as py-amqp reads one

        assert message({"timestamp": naive}).timestamp == datetime(2020, 1, 2, tzinfo=UTC)

    def test_the_id_tells_the_milliseconds_where_it_agrees(self) -> None:
        id_ = new_id(1_577_923_200.123)

        assert message({"timestamp": 1_577_923_200}, id_=id_).timestamp == time_of_id(id_)
        assert message({"timestamp": 1_577_923_100}, id_=id_).timestamp != time_of_id(id_)

    def test_without_a_time_the_id_tells_it(self) -> None:
        id_ = new_id(1_577_923_200.123)

        assert message({}, id_=id_).timestamp == time_of_id(id_)
        assert message({}, id_="foreign").timestamp is None

    def test_a_header_tells_a_time_that_neither_can(self) -> None:
        told = message({"timestamp": 1}, {"qw-timestamp": "2020-01-02T03:04:05.678901+02:00"})

        assert told.timestamp == datetime(
            2020, 1, 2, 3, 4, 5, 678901, tzinfo=timezone(timedelta(hours=2))
        )

    @pytest.mark.parametrize("stamp", [2**63, -(2**70), "soon", b"\xff", float("inf"), []])
    def test_what_is_no_time_is_none(self, stamp: object) -> None:
        assert message({"timestamp": stamp}).timestamp is None

    @pytest.mark.parametrize("text", ["soon", "", "\udcff", 5, None, "2020-13-01", "9" * 100])
    def test_a_header_that_tells_no_time_is_passed_over(self, text: object) -> None:
        assert message({}, {"qw-timestamp": text}).timestamp is None

    @given(
        st.datetimes(
            min_value=datetime(2, 1, 1),  # noqa: DTZ001 - the strategy adds the zone
            max_value=datetime(9998, 12, 31),  # noqa: DTZ001 - as above
            timezones=st.timezones(),
            allow_imaginary=False,
        )
    )
    def test_any_time_that_an_event_was_given_arrives(self, moment: datetime) -> None:
        event = Ticked(timestamp=moment)
        sent = message({}, {"qw-timestamp": event.timestamp.isoformat()})

        assert sent.timestamp == moment.astimezone(UTC)
