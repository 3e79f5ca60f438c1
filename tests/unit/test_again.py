"""Events of a replay: for which handlers, and what remembers them."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from worker import App, Context, Event
from worker.again import AGAIN, HANDLERS, REPLAY, remembered_as, replay_headers
from worker.barrier import Barrier, barrier
from worker.codec import Codec
from worker.config import Settings
from worker.intake import Found, Intake, ToShard
from worker.message import Outgoing
from worker.outcome import DeadLetter
from worker.task import Delivery
from worker.testing import TestWorker
from worker.transport.arrival import Arrival

app = App("bank")
CODEC = Codec.of("bank", Settings())


@app.on("user.*")
def count(event: dict[str, Any]) -> None: ...


@app.on("user.created")
def greet(event: dict[str, Any], context: Context) -> None: ...


class Channel:
    shard = 0
    relays = False
    feed = None


def arriving(sent: Outgoing, exchange: str = "") -> Arrival:
    properties = {**sent.properties, "application_headers": sent.headers}
    return Arrival(None, 1, False, exchange, "q", properties, sent.body)


def read(headers: dict[str, str], name: str = "user.created", *, relays: bool = False) -> Found:
    channel = Channel()
    channel.relays = relays
    sent = CODEC.pack(name, b"{}", message_id="id-1", headers=headers)
    arrival = arriving(sent)
    return Intake(app, CODEC).read(Delivery(channel, 1, arrival), arrival)


def records(headers: dict[str, str]) -> list[bytes]:
    found = read(headers)
    assert isinstance(found, list)
    return [task.record for task in found]


def test_a_replay_is_for_the_handlers_that_were_chosen() -> None:
    for chosen in (["count"], ["greet"], ["count", "greet"], ["greet", "gone"]):
        found = read(replay_headers("r1", chosen, again=False))

        assert isinstance(found, list)
        assert [task.handler.name for task in found] == [n for n in chosen if n != "gone"]


def test_a_replay_for_nobody_in_particular_is_for_all() -> None:
    assert HANDLERS not in replay_headers("r1", [], again=False)
    assert len(records(replay_headers("r1", [], again=False))) == 2


def test_what_was_chosen_and_is_not_there_is_told() -> None:
    found = read(replay_headers("r1", ["gone"], again=False))

    assert isinstance(found, DeadLetter)
    assert "gone" in found.reason


def test_a_replay_is_remembered_as_what_was_published_and_again_as_itself() -> None:
    published = records({})
    replayed = records(replay_headers("r1", [], again=False))
    again = records(replay_headers("r1", [], again=True))
    another = records(replay_headers("r2", [], again=True))

    assert replayed == published
    assert records(replay_headers("r1", [], again=True)) == again
    assert len({*published, *again, *another}) == 6


def test_a_database_of_the_handlers_own_remembers_it_likewise() -> None:
    assert remembered_as("id-1", replay_headers("r1", [], again=False)) == "id-1"
    assert remembered_as("id-1", {REPLAY: "r1", AGAIN: "1"}) == "id-1@r1"


@pytest.mark.parametrize("headers", [{HANDLERS: 1}, {AGAIN: "1"}, {AGAIN: "1", REPLAY: 1}])
def test_headers_of_others_are_no_replay(headers: dict[str, Any]) -> None:
    assert records(headers) == records({})


def test_a_barrier_is_known_by_how_it_came() -> None:
    everything = App("archive")
    everything.on("#")(count)
    sent = barrier(CODEC, "b1", "archive.g1.0")

    def found(exchange: str, *, relays: bool = False) -> Found:
        channel = Channel()
        channel.relays = relays
        arrival = arriving(sent, exchange)
        return Intake(everything, CODEC).read(Delivery(channel, 1, arrival), arrival)

    there = found("")
    assert isinstance(there, Barrier)
    assert [task.handler.name for task in there.tasks] == ["count"]
    assert found("", relays=True) == Barrier([])
    assert isinstance(found("qw.events"), list)
    assert isinstance(found("qw.events", relays=True), ToShard)


def test_an_effect_in_the_handlers_own_database_happens_once_in_each_replay_that_asks(
    tmp_path: Path,
) -> None:
    bank = App("bank")
    keys: list[str] = []

    @bank.on("user.created")
    def note(event: dict[str, Any], context: Context) -> None:
        with closing(sqlite3.connect(tmp_path / "own.db")) as db, db:
            context.once(db)
            db.execute("CREATE TABLE IF NOT EXISTS effect (id)")
            db.execute("INSERT INTO effect VALUES (?)", (context.message_id,))
        keys.append(context.idempotency_key)

    class Created(Event, name="user.created"):
        who: str

    event = Created(who="ann")
    with TestWorker(bank) as worker:
        for headers in (
            {},
            replay_headers("r0", [], again=False),
            replay_headers("r1", [], again=True),
            replay_headers("r1", [], again=True),
            replay_headers("r2", ["note"], again=True),
        ):
            worker.publish(event, headers=headers)
            worker.run()
        assert worker.dead_letters == []

    with closing(sqlite3.connect(tmp_path / "own.db")) as db:
        assert db.execute("SELECT id FROM effect").fetchall() == [(event.event_id,)] * 3
    assert keys == [f"bank.note:{event.event_id}{end}" for end in ("", "@r1", "@r2")]
