"""Whatever a publisher sends: a message or a dead letter, never an exception, never a loss.

Each input goes the way of a delivery: frames through the pump, properties and body through the
codec, tasks through the intake, payloads through every kind of handler, and into the dead-letter
queue. More than 10,000 of them run every time, the same ones, so that a failure is there again.
``QWORKER_FUZZ=20`` runs twenty times as many, others each time; what fails prints how to repeat it.
"""

from __future__ import annotations

import dataclasses
import os
import struct
from collections.abc import Callable
from decimal import Decimal
from types import SimpleNamespace
from typing import Any, TypedDict

import amqp
import attrs
import msgspec
import orjson
import pydantic
import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from frames import FRAME_MAX, deliver
from worker import App, Event, Message
from worker.aside import dead_letter_facts, set_aside
from worker.codec import Codec
from worker.config import Settings
from worker.intake import Intake
from worker.outcome import DeadLetter
from worker.payload import Unfit
from worker.task import Delivery, Task
from worker.transport.arrival import Arrival
from worker.transport.departure import publish_frames
from worker.transport.properties import Malformed, amend

TIMES = int(os.environ.get("QWORKER_FUZZ", "0"))


def fuzz(examples: int) -> Callable[[Any], Any]:
    """Run a test with so many inputs."""
    return settings(
        max_examples=examples * max(1, TIMES),
        derandomize=not TIMES,
        database=None,
        deadline=None,
        print_blob=True,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )


# -- an app with a handler of every kind ---------------------------------------------------------


class Deposited(Event, name="user.deposited", key="user_id"):
    user_id: str
    amount: Decimal = Decimal(0)
    tags: list[dict[str, int | None]] = dataclasses.field(default_factory=list)


class Keyed(Event, name="user.keyed", key=lambda event: event.path["a"][0].strip()):
    path: Any = None


@dataclasses.dataclass
class Plain:
    user_id: str
    amount: float = 0.0


@attrs.define
class Attrs:
    user_id: str
    amount: int = 0


class Struct(msgspec.Struct):
    user_id: str
    when: msgspec.Raw = msgspec.Raw(b"null")


class Typed(TypedDict):
    user_id: str


class Model(pydantic.BaseModel):
    user_id: str
    amount: Decimal = Decimal(0)


APP = App("bank")
APP.on(Deposited, name="event")(lambda event: None)
APP.on(Keyed, name="keyed")(lambda event: None)
for kind in (Plain, Attrs, Struct, Typed, Model, dict, list[int], None):
    APP.on("user.*", type=kind, name=f"as_{getattr(kind, '__name__', kind)}")(lambda event: None)

CODECS = [
    Codec.of("bank", Settings(**changes))
    for changes in (
        {},
        {"id_from": "header:id", "name_from": "routing-key", "key_from": "property:reply_to"},
        {"id_from": "body:id", "name_from": "body:meta.name", "key_from": "body:user_id"},
        {"id_from": "body-hash", "name_from": "routing-key", "max_message_bytes": 64},
    )
]
INTAKES = [Intake(APP, codec) for codec in CODECS]
CHANNEL: Any = SimpleNamespace(shard=0, queue="bank.g1.0", closed=False, relays=False, feed=None)


# -- what must hold for every input --------------------------------------------------------------


def check(body: bytes, raw: bytes, routing_key: str = "user.deposited") -> None:
    """Send one message the whole way, as a broker would deliver it."""
    arrival = deliver(body, raw, routing_key)
    check_arrival(arrival, body)
    check_amended(raw)
    # The embedded broker has no raw properties to give.
    arrival.raw = None
    check_set_aside(arrival, body, "decoded")


def check_arrival(arrival: Arrival, body: bytes) -> None:
    reasons = []
    for intake, codec in zip(INTAKES, CODECS, strict=True):
        decoded = codec.decode(arrival.body, arrival.properties, arrival.routing_key)
        assert isinstance(decoded, Message | DeadLetter)
        delivery = Delivery(CHANNEL, arrival.tag, arrival)
        read = intake.read(delivery, arrival)
        if isinstance(read, DeadLetter):
            assert read.reason
            assert len(read.reason) < 2000
            reasons.append(read.reason)
        elif isinstance(read, list):
            reasons += [reason for task in read if (reason := unfit(task))]
    check_set_aside(arrival, body, max(reasons, key=len, default="failed at attempt 5: no"))


def unfit(task: Task) -> str | None:
    try:
        task.handler.decode(task.message)
    except Unfit as error:
        return str(error) or "no reason at all"
    return None


def check_set_aside(arrival: Arrival, body: bytes, reason: str) -> None:
    facts = dead_letter_facts(
        reason, queue="bank.g1.0", handler="h", attempts=3, detail="Traceback…\n" * 1000
    )
    letter = set_aside(arrival, "id", "bank.dlq", facts)
    assert letter.body == body, "the body must stay byte for byte"
    encoded = letter.raw
    if encoded is None:
        message = amqp.Message(b"", application_headers=letter.headers, **letter.properties)
        encoded = message._serialize_properties()
    publish_frames(
        1,
        exchange=letter.exchange,
        routing_key=letter.routing_key,
        mandatory=letter.mandatory,
        properties=encoded,
        body=letter.body,
        frame_max=FRAME_MAX,
    )
    again = deliver(body, encoded, "bank.dlq")
    if "qw-undecodable" not in again.properties:
        assert again.properties["application_headers"]["qw-dead-queue"] == "bank.g1.0"


def check_amended(raw: bytes) -> None:
    """Properties that are amended keep every header of the publisher."""
    try:
        amended = amend(raw, add={"qw-dead-reason": "r"}, rename={}, drop_prefix=None)
    except Malformed:
        return
    before, after = (deliver(b"", one).properties for one in (raw, amended))
    if "qw-undecodable" in before:
        return  # what cannot be decoded may be just what was dropped
    headers = {**(before.pop("application_headers", None) or {}), "qw-dead-reason": "r"}
    kept = after.pop("application_headers")
    assert {name: repr(value) for name, value in kept.items()} == {  # repr: NaN is not itself
        name: repr(value) for name, value in headers.items()
    }
    for dropped in ("expiration", "user_id"):
        before.pop(dropped, None)
    assert after == before


# -- inputs --------------------------------------------------------------------------------------

LENGTH = struct.Struct(">I")
surrogates = st.text(st.characters(), max_size=12)  # with lone ones
short_bytes = st.binary(max_size=12) | surrogates.map(lambda s: s.encode("utf-8", "surrogatepass"))


def sized(letter: bytes, content: bytes) -> bytes:
    return letter + LENGTH.pack(len(content)) + content


def fixed(letter: bytes, size: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=size, max_size=size).map(lambda value: letter + value)


#: Every field type of AMQP 0-9-1 and of RabbitMQ, the type letter first.
FIXED = {b"t": 1, b"b": 1, b"B": 1, b"s": 2, b"U": 2, b"u": 2, b"I": 4, b"i": 4, b"L": 8, b"l": 8,
         b"f": 4, b"d": 8, b"D": 5, b"T": 8, b"V": 0}  # fmt: skip
scalars = st.one_of(
    *(fixed(letter, size) for letter, size in FIXED.items()),
    short_bytes.map(lambda value: sized(b"S", value)),
    st.binary(max_size=12).map(lambda value: sized(b"x", value)),
    st.sampled_from([b"d\x7f\xf8" + bytes(6), b"d\x7f\xf0" + bytes(6), b"T" + b"\xff" * 8]),
)
names = st.one_of(
    st.sampled_from([b"qw-key", b"id", b"CC", b"BCC", b"qw-timestamp", b"qw-dead-reason", b""]),
    st.sampled_from([b"qw-unparked", b"x-death", b"traceparent", b"\xff"]),
    short_bytes,
).map(lambda name: bytes([len(name)]) + name)


def table_of(values: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return st.lists(st.tuples(names, values).map(b"".join), max_size=3).map(b"".join)


values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: sized(b"A", b"".join(items))),
        table_of(inner).map(lambda content: sized(b"F", content)),
    ),
    max_leaves=6,
)
tables = table_of(values).map(lambda content: LENGTH.pack(len(content)) + content)


def short(text: str | bytes) -> bytes:
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return bytes([len(data[:255])]) + data[:255]


def shorts(*likely: str) -> st.SearchStrategy[bytes]:
    return (st.sampled_from(likely) | short_bytes).map(short)


#: The properties by their flags, in the order of the wire.
PROPERTIES = {
    0x8000: shorts("application/json", "application/cloudevents+json", "text/plain", ""),
    0x4000: shorts("utf-8", "gzip", "latin-1"),
    0x2000: tables,
    0x1000: st.binary(min_size=1, max_size=1),
    0x0800: st.binary(min_size=1, max_size=1),
    0x0400: shorts("story"),
    0x0200: shorts("reply"),
    0x0100: shorts("60000", "soon"),
    0x0080: shorts("id-1", "", "i" * 255, "\ud800"),
    0x0040: st.binary(min_size=8, max_size=8) | st.just(struct.pack(">Q", 1_577_923_200)),
    0x0020: shorts("user.deposited", "user.keyed", "user.other", "nobody", "qw.unpark", ""),
    0x0010: shorts("guest"),
    0x0008: shorts("app"),
    0x0004: shorts("cluster"),
}


@st.composite
def envelopes(draw: st.DrawFn) -> bytes:
    """Property flags and list, well formed down to the values."""
    wanted = draw(st.integers(0, 0xFFFF)) | draw(st.sampled_from([0x00A0, 0x20A0, 0xA0A0, 0]))
    parts = [draw(made) for flag, made in PROPERTIES.items() if wanted & flag]
    flags = wanted & sum(PROPERTIES)
    return struct.pack(">H", flags) + b"".join(parts)


@st.composite
def mutated(draw: st.DrawFn, originals: st.SearchStrategy[bytes]) -> bytes:
    """Some bytes of an original changed, cut off or put in."""
    data = bytearray(draw(originals))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["change", "cut", "insert", "remove"])):
            case "change" if place < len(data):
                data[place] = draw(st.integers(0, 255))
            case "cut":
                del data[place:]
            case "insert":
                data[place:place] = draw(st.binary(min_size=1, max_size=4))
            case _:
                del data[place : place + draw(st.integers(1, 4))]
    return bytes(data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)
payload_names = st.sampled_from(["user_id", "amount", "tags", "path", "id", "meta", "when"])
payloads = st.dictionaries(payload_names, json_values | st.just("u1") | st.just("1.5"), max_size=4)


def dumped(value: object) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError:  # integers beyond 64 bits, lone surrogates: Python's own writes them
        import json  # noqa: PLC0415 - see above

        return json.dumps(value).encode()


bodies = st.one_of(
    payloads.map(dumped),
    json_values.map(dumped),
    mutated(payloads.map(dumped)),
    st.binary(max_size=40),
    payloads.map(lambda value: dumped(value).decode().encode("utf-16")),
    st.sampled_from([b"", b"NaN", b'{"user_id":"\\ud800"}', b'"\xed\xa0\x80"', b"\xef\xbb\xbf{}"]),
)
cloud_events = st.fixed_dictionaries(
    {},
    optional={
        "specversion": st.just("1.0") | json_values,
        "id": st.just("e-1") | json_values,
        "type": st.just("user.deposited") | json_values,
        "source": st.just("/bank") | json_values,
        "time": st.just("2020-01-02T03:04:05Z") | st.just("2020-01-02T03:04:05") | json_values,
        "partitionkey": st.just("u1") | json_values,
        "data": payloads | json_values,
        "data_base64": st.just("e30=") | json_values,
    },
)

GOOD = (
    struct.pack(">H", 0x80A0) + short("application/json") + short("id-1") + short("user.deposited")
)
CLOUD = struct.pack(">H", 0x8000) + short("application/cloudevents+json")


# -- the runs ------------------------------------------------------------------------------------


@fuzz(400)
@given(raw=envelopes(), body=bodies)
def test_any_properties_of_the_right_form(raw: bytes, body: bytes) -> None:
    check(body, raw)


@fuzz(400)
@given(raw=mutated(envelopes()) | st.binary(max_size=60), body=bodies)
def test_properties_of_the_wrong_form(raw: bytes, body: bytes) -> None:
    check(body, raw)


@fuzz(400)
@given(body=bodies)
def test_any_body(body: bytes) -> None:
    check(body, GOOD)


@fuzz(250)
@given(event=cloud_events.map(dumped), body=st.none() | mutated(cloud_events.map(dumped)))
def test_any_cloudevent(event: bytes, body: bytes | None) -> None:
    check(event if body is None else body, CLOUD)


@fuzz(200)
@given(
    properties=st.dictionaries(
        st.sampled_from(["message_id", "type", "timestamp", "content_type", "application_headers"]),
        st.recursive(
            st.none() | st.integers() | st.floats() | surrogates | st.binary(max_size=8),
            lambda inner: (
                st.lists(inner, max_size=2) | st.dictionaries(surrogates, inner, max_size=2)
            ),
            max_leaves=4,
        )
        | st.just("user.deposited"),
    ),
    body=bodies,
)
def test_properties_that_no_broker_would_hand_on(properties: dict[str, Any], body: bytes) -> None:
    arrival = deliver(body, GOOD)
    arrival.properties = properties
    arrival.raw = None

    check_arrival(arrival, body)


@fuzz(200)
@given(routing_key=surrogates)
@example(routing_key="")
@example(routing_key="user." * 40)
def test_any_routing_key(routing_key: str) -> None:
    check(b"{}", GOOD, routing_key)


@pytest.mark.parametrize("opening", [b"[", b'{"user_id":', b'{"tags":[{"a":', b'[{"path":'])
@pytest.mark.parametrize("levels", [100, 1000, 1025, 100_000])
def test_deep_nesting(opening: bytes, levels: int) -> None:
    closing = {b"[": b"]", b"{": b"}"}
    end = b"".join(closing[bytes([c])] for c in reversed(opening) if bytes([c]) in closing)
    for body in (opening * levels, opening * levels + b"1" + end * levels):
        check(body, GOOD)
        check(b'{"specversion":"1.0","id":"a","type":"user.keyed","data":' + body + b"}", CLOUD)


@pytest.mark.parametrize("levels", [10, 1000, 20_000])
@pytest.mark.parametrize("letter", [b"A", b"F"])
def test_headers_of_deep_nesting(letter: bytes, levels: int) -> None:
    value = b"V"
    for _ in range(levels):
        value = sized(letter, value if letter == b"A" else b"\0" + value)
        if len(value) > FRAME_MAX - 100:
            break
    table = b"\x01h" + value
    raw = struct.pack(">H", 0x20A0) + LENGTH.pack(len(table)) + table
    check(b"{}", raw + short("id-1") + short("user.deposited"))


@pytest.mark.parametrize("size", [0, 1, 1024, 1024 * 1024, 1024 * 1024 + 1, 5 * 1024 * 1024])
def test_any_size_of_body(size: int) -> None:
    check(b" " * size, GOOD)


@pytest.mark.parametrize("size", [1000, 100_000, 114_000, 120_000, 130_500, 130_900])
def test_headers_that_leave_no_room_for_a_reason(size: int) -> None:
    table = b"\x01h" + sized(b"S", b"h" * size)
    raw = struct.pack(">H", 0x20A0) + LENGTH.pack(len(table)) + table
    check(b"{}", raw + short("id-1") + short("nobody"))


def test_a_cloudevent_is_known_by_its_data_and_not_by_its_envelope() -> None:
    """A child that is published twice has another time in each."""
    found = []
    for moment in ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"):
        body = orjson.dumps(
            {"specversion": "1.0", "id": "1", "type": "user.deposited", "source": "s",
             "time": moment, "data": {"user_id": "u1"}}
        )  # fmt: skip
        raw = amqp.Message(b"", content_type="application/cloudevents+json")
        properties = raw._serialize_properties()
        arrival = deliver(body, properties)
        delivery = Delivery(CHANNEL, arrival.tag, arrival)
        assert isinstance(INTAKES[0].read(delivery, arrival), list)
        found.append(delivery.fingerprint)

    assert found[0] == found[1]
