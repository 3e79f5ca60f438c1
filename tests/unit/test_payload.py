"""A payload arrives as what its handler asked for, or is refused with the path of the bad field."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal, TypedDict
from uuid import UUID

import attrs
import msgspec
import orjson
import pydantic
import pytest

from worker import ConfigurationError, Event, Message
from worker.payload import Unfit, decoder_for, to_json


class Currency(enum.Enum):
    EUR = "EUR"
    USD = "USD"


@dataclasses.dataclass
class Line:
    article: str
    price: Decimal


class OrderPlaced(Event, name="order.placed", key="order"):
    """One field of each kind that payloads are made of."""

    order: UUID
    lines: list[Line]
    currency: Currency
    day: date
    at: datetime
    within: timedelta
    tags: set[str]
    pdf: bytes
    state: Literal["new", "paid"] = "new"
    note: str | None = None
    ratings: dict[str, float] = dataclasses.field(default_factory=dict)
    weight: Annotated[float, msgspec.Meta(gt=0)] = 1.0


ORDER = OrderPlaced(
    order=UUID("6ec0bd7f-11c0-43da-975e-2a8ad9ebae0b"),
    lines=[Line("pen", Decimal("1.10")), Line("ink", Decimal("1E-7"))],
    currency=Currency.EUR,
    day=date(2020, 1, 2),
    at=datetime(2020, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
    within=timedelta(days=2, seconds=0.5),
    tags={"a", "b"},
    pdf=b"\x00\xff",
    note="ünï\N{GRINNING FACE}",
    ratings={"x": 0.1},
)


@dataclasses.dataclass
class Plain:
    user_id: str
    amount: int = 0


@attrs.define
class Attrs:
    user_id: str
    amount: int = 0


@attrs.define
class Tagged:
    tags: set[str]


class Struct(msgspec.Struct):
    user_id: str
    amount: int = 0


class Typed(TypedDict):
    user_id: str
    amount: int


class Model(pydantic.BaseModel):
    user_id: str
    amount: int = 0


def message(body: bytes, id_: str = "some id") -> Message:
    return Message(id_, "user.deposited", None, body, {}, {})


def sent(event: OrderPlaced) -> bytes:
    """Return the body that the codec makes of an event."""
    names = [f.name for f in dataclasses.fields(event) if f.name not in ("event_id", "timestamp")]
    return to_json({name: getattr(event, name) for name in names})


class TestEvents:
    def test_every_kind_of_field_arrives_as_it_was_sent(self) -> None:
        decoded = decoder_for(OrderPlaced)(message(sent(ORDER), ORDER.event_id))

        assert decoded == ORDER
        assert decoded.lines[1].price == Decimal("1E-7")

    def test_id_and_time_come_from_the_envelope(self) -> None:
        received = message(sent(ORDER))
        received.time = datetime(2000, 1, 1, tzinfo=UTC)
        decoded = decoder_for(OrderPlaced)(received)

        assert decoded.event_id == "some id"
        assert decoded.timestamp == datetime(2000, 1, 1, tzinfo=UTC)

    def test_a_foreign_publisher_may_give_no_time_at_all(self) -> None:
        decoded = decoder_for(OrderPlaced)(message(sent(ORDER), "foreign"))

        assert decoded.timestamp.tzinfo is UTC

    def test_fields_that_are_left_out_have_their_defaults(self) -> None:
        class Defaulted(Event):
            amount: int = 5
            tags: list[str] = dataclasses.field(default_factory=list)
            seen: list[str] = dataclasses.field(default_factory=list, init=False)

        first, second = (decoder_for(Defaulted)(message(b"{}")) for _ in range(2))
        assert (first.amount, first.tags, first.seen) == (5, [], [])
        assert first.tags is not second.tags
        assert first.seen is not second.seen

    def test_fields_that_nobody_knows_are_passed_over(self) -> None:
        class Thin(Event):
            user_id: str

        decoded = decoder_for(Thin)(message(b'{"user_id": "u", "added_later": [1]}'))
        assert decoded.user_id == "u"

    def test_a_decoded_event_is_frozen_too(self) -> None:
        decoded = decoder_for(OrderPlaced)(message(sent(ORDER)))

        with pytest.raises(dataclasses.FrozenInstanceError):
            decoded.note = "changed"

    def test_what_the_class_itself_refuses_is_unfit(self) -> None:
        class Positive(Event):
            amount: int

            def __post_init__(self) -> None:
                if self.amount <= 0:
                    raise ValueError("amount must be positive")

        with pytest.raises(Unfit, match="amount must be positive"):
            decoder_for(Positive)(message(b'{"amount": 0}'))

    @pytest.mark.parametrize(
        ("change", "path"),
        [
            ({"order": "6ec0"}, "$.order"),
            ({"lines": [{"article": "pen", "price": "much"}]}, "$.lines[0].price"),
            ({"lines": [{"article": "pen"}]}, "$.lines[0]"),
            ({"currency": "XXX"}, "$.currency"),
            ({"ratings": {"x": "y"}}, "$.ratings[...]"),
            ({"weight": -1}, "$.weight"),
            ({"tags": "a"}, "$.tags"),
        ],
    )
    def test_what_does_not_fit_is_refused_with_its_path(
        self, change: dict[str, Any], path: str
    ) -> None:
        body = to_json({**orjson.loads(sent(ORDER)), **change})

        with pytest.raises(Unfit) as caught:
            decoder_for(OrderPlaced)(message(body))
        assert f"`{path}`" in str(caught.value)

    def test_a_field_that_is_missing_is_named(self) -> None:
        with pytest.raises(Unfit, match="missing required field `order`"):
            decoder_for(OrderPlaced)(message(b"{}"))


KINDS: list[tuple[Any, Callable[[Any], object]]] = [
    (Plain, lambda value: (value.user_id, value.amount)),
    (Attrs, lambda value: (value.user_id, value.amount)),
    (Struct, lambda value: (value.user_id, value.amount)),
    (Model, lambda value: (value.user_id, value.amount)),
    (Typed, lambda value: (value["user_id"], value["amount"])),
    (dict, lambda value: (value["user_id"], value["amount"])),
    (dict[str, Any], lambda value: (value["user_id"], value["amount"])),
    (None, lambda value: (value["user_id"], value["amount"])),
]
NAMES = [getattr(kind, "__name__", str(kind)) for kind, _ in KINDS]


class TestOtherTypes:
    @pytest.mark.parametrize(("kind", "facts"), KINDS, ids=NAMES)
    def test_many_libraries_types_serve(self, kind: Any, facts: Callable[[Any], object]) -> None:
        decoded = decoder_for(kind)(message(b'{"user_id": "u", "amount": 5}'))

        assert facts(decoded) == ("u", 5)
        if isinstance(kind, type) and kind is not Typed:
            assert isinstance(decoded, kind)

    @pytest.mark.parametrize("kind", [Plain, Attrs, Struct, Model, Typed], ids=NAMES[:5])
    def test_all_of_them_name_the_field_that_does_not_fit(self, kind: Any) -> None:
        with pytest.raises(Unfit, match=r"the payload does not fit[\s\S]*amount"):
            decoder_for(kind)(message(b'{"user_id": "u", "amount": "much"}'))

    @pytest.mark.parametrize("kind", [k for k, _ in KINDS] + [OrderPlaced, list[int]], ids=str)
    @pytest.mark.parametrize(
        "body", [b"", b"\xff", b"{", b'{"a":1}}', b"NaN", b"[" * 100_000, b'{"a":' * 100_000, b"\0"]
    )
    def test_what_is_no_json_is_unfit(self, kind: Any, body: bytes) -> None:
        with pytest.raises(Unfit):
            decoder_for(kind)(message(body))

    def test_a_handler_of_a_bare_payload_gets_whatever_json_it_is(self) -> None:
        assert decoder_for(None)(message(b"[1, null]")) == [1, None]
        assert decoder_for(list[int])(message(b"[1, 2]")) == [1, 2]

    @pytest.mark.parametrize("kind", [list[int] | set[int], "Missing"])
    def test_a_type_that_json_cannot_become_is_told_when_the_handler_is_registered(
        self, kind: Any
    ) -> None:
        with pytest.raises(ConfigurationError):
            decoder_for(kind)

    def test_an_annotation_that_names_nothing_is_told_when_the_handler_is_registered(self) -> None:
        class Wrong(Event):
            amount: Missing  # type: ignore[name-defined] # noqa: F821 - that is the point

        with pytest.raises(ConfigurationError, match="Missing"):
            decoder_for(Wrong)


class TestWriting:
    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (Decimal("1.10"), b'"1.10"'),
            (frozenset(), b"[]"),
            (b"\x00\xff", b'"AP8="'),
            (bytearray(b"a"), b'"YQ=="'),
            (memoryview(b"a"), b'"YQ=="'),
            (timedelta(seconds=90), b'"PT90S"'),
            (Attrs("u"), b'{"amount":0,"user_id":"u"}'),
            (Struct("u"), b'{"user_id":"u","amount":0}'),
            (Plain("u"), b'{"user_id":"u","amount":0}'),
            (Model(user_id="u"), b'{"user_id":"u","amount":0}'),
            (Typed(user_id="u", amount=0), b'{"user_id":"u","amount":0}'),
            (Currency.USD, b'"USD"'),
            ({1: "a", None: "b"}, b'{"1":"a","null":"b"}'),
            (float("nan"), b"null"),
        ],
    )
    def test_every_usual_value_can_be_sent(self, value: object, text: bytes) -> None:
        assert to_json(value) == text

    @pytest.mark.parametrize(
        ("value", "text"),
        [
            ({"b", "c", "a"}, b'["a","b","c"]'),
            (frozenset({1, "1", None}), b'["1",1,null]'),
            (Tagged({"b", "c", "a"}), b'{"tags":["a","b","c"]}'),
        ],
    )
    def test_a_set_is_always_sent_in_the_same_order(self, value: object, text: bytes) -> None:
        """A child that is published a second time must have the same fingerprint."""
        assert to_json(value) == text

    @pytest.mark.parametrize(
        ("value", "told"),
        [
            (object(), "object is not JSON"),
            (2**70, "Integer"),
            ("\udcff", "str is not valid UTF-8"),
        ],
    )
    def test_what_cannot_be_sent_is_told(self, value: object, told: str) -> None:
        with pytest.raises(TypeError, match=told):
            to_json({"field": value})
