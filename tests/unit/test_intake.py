"""What a delivery means: tasks, a dead letter, nothing, or that it goes on to its shard."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from worker import App, Event
from worker.codec import Codec
from worker.config import Settings
from worker.intake import Intake, ToShard
from worker.outcome import DeadLetter
from worker.parking import Unpark
from worker.seal import Sealed
from worker.task import Delivery, Task
from worker.transport.arrival import Arrival


class Deposited(Event, name="user.deposited", key="user"):
    user: str


APP = App("bank")
APP.on(Deposited, name="deposited")(lambda event: None)
APP.on("*", name="words")(lambda event: None)
INTAKE = Intake(APP, Codec.of("bank", Settings()))
BY_ROUTING_KEY = Intake(APP, Codec.of("bank", Settings(name_from="routing-key")))


def read(  # noqa: PLR0913 - the facts of a delivery
    name: str,
    *,
    exchange: str = "qw.events",
    routing_key: str = "",
    headers: dict[str, Any] | None = None,
    relays: bool = False,
    intake: Intake = INTAKE,
) -> object:
    """Return what becomes of a message."""
    properties = {"message_id": "m1", "type": name, "application_headers": headers or {}}
    body = b'{"user": "ann"}'
    arrival = Arrival(None, 1, False, exchange, routing_key or name, properties, body)
    shard = -1 if relays else 0
    channel = SimpleNamespace(shard=shard, queue="q", leaving=False, relays=relays, feed=None)
    return intake.read(Delivery(channel, 1, arrival), arrival)


def names(found: object) -> list[str]:
    """Return the handlers of the tasks."""
    assert isinstance(found, list)
    return [task.handler_name for task in found if isinstance(task, Task)]


def test_an_event_that_only_its_slot_brought_means_nobody() -> None:
    assert names(read("word")) == ["words"]
    assert read("two.words") == []


@pytest.mark.parametrize(
    "facts",
    [{"exchange": "qw.commands"}, {"exchange": "", "headers": {"qw-dead-handler": "mend"}}],
    ids=["command", "replayed"],
)
def test_what_no_slot_can_have_brought_is_a_dead_letter(facts: dict[str, Any]) -> None:
    found = read("two.words", **facts)
    assert isinstance(found, DeadLetter)
    assert "no handler of 'bank' observes 'two.words'" in found.reason


@pytest.mark.parametrize(
    ("headers", "key"),
    [({"qw-key": "bob"}, "bob"), ({}, "ann"), ({"qw-key": "m1"}, "m1")],
    ids=["header", "payload", "no key"],
)
def test_what_has_no_slot_goes_on_by_its_key(headers: dict[str, Any], key: str) -> None:
    assert read("user.deposited", headers=headers, relays=True) == ToShard(key)


def test_a_kept_routing_key_counts_where_the_runtime_has_moved_the_message_alone() -> None:
    kept: dict[str, Any] = {"headers": {"qw-routing-key": "word"}, "intake": BY_ROUTING_KEY}

    assert names(read("", exchange="", routing_key="bank.g1.0", **kept)) == ["words"]
    assert names(read("", routing_key="user.deposited", **kept)) == ["deposited"]


def test_markers_are_known_wherever_publishers_say_what_and_who() -> None:
    foreign = Settings(id_from="body:id", name_from="header:kind", key_from="body:user.id")
    intake = Intake(APP, Codec.of("bank", foreign))
    sealed: dict[str, Any] = {
        "intake": intake,
        "routing_key": "bank.g1.0",
        "headers": {"qw-generation": 1},
    }
    unpark: dict[str, Any] = {"intake": intake, "headers": {"qw-key": "u1", "qw-unpark-upto": 7}}

    assert read("qw.seal", exchange="", **sealed) == Sealed()
    assert read("qw.unpark", exchange="", **unpark) == Unpark("u1", 7)
    assert isinstance(read("qw.seal", exchange="qw.events", **sealed), DeadLetter)
    assert isinstance(read("qw.unpark", exchange="", intake=intake), DeadLetter)
