"""The outbox: what leaves, when, and in which order, by each integration on each database."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
from django.db import Error
from sqlalchemy import String, delete, func, literal, select, update
from sqlalchemy.exc import DBAPIError
from worker.contrib.sqlalchemy.tables import outbox_table

from outboxes import Desk, Loose, Noted, Order, by_key, sent
from worker import App, BrokerUnreachable, ConfigurationError, Context, Relayed
from worker.testing import TestWorker, duplicate_everything


class Undone(Exception):
    """Somebody changed their mind."""


def test_an_event_leaves_after_the_commit_and_not_before(desk: Desk, worker: TestWorker) -> None:
    with desk.begin() as deal:
        deal.publish(Noted(key="a", number=0))
        assert desk.outbox.flush()
        assert sent(worker) == []
    assert desk.outbox.flush()
    assert sent(worker) == [("a", 0)]
    assert desk.left() == 0


def test_it_is_the_event_as_the_app_would_publish_it(desk: Desk, worker: TestWorker) -> None:
    event = Noted(key="a", number=0)
    with desk.begin() as deal:
        told = deal.publish(event, headers={"shop": "north"}, priority=3, correlation_id="story")
    assert desk.outbox.flush()
    desk.app.publish(event, headers={"shop": "north"}, priority=3, correlation_id="story")
    first, second = worker._tap.arrivals()
    assert told == event.event_id
    assert first.properties == second.properties
    assert (first.exchange, first.routing_key) == (second.exchange, second.routing_key)
    assert bytes(first.body) == bytes(second.body)


def test_nothing_leaves_of_a_transaction_that_is_rolled_back(
    desk: Desk, worker: TestWorker
) -> None:
    with suppress(Undone), desk.begin() as deal:
        deal.publish(Noted(key="a", number=-1))
        raise Undone
    with desk.begin() as deal:
        deal.publish(Noted(key="a", number=0))
    assert desk.outbox.flush()
    assert sent(worker) == [("a", 0)]


def test_of_a_savepoint_only_what_is_kept_leaves(desk: Desk, worker: TestWorker) -> None:
    with desk.begin() as deal:
        deal.publish(Noted(key="a", number=0))
        with deal.savepoint():
            deal.publish(Noted(key="a", number=1))
            with suppress(Undone), deal.savepoint():
                deal.publish(Noted(key="a", number=-1))
                raise Undone
        with suppress(Undone), deal.savepoint():
            with deal.savepoint():
                deal.publish(Noted(key="a", number=-2))
            raise Undone
        deal.publish(Noted(key="a", number=2))
    assert desk.outbox.flush()
    assert sent(worker) == [("a", 0), ("a", 1), ("a", 2)]


def test_without_its_table_it_tells_how_to_make_it(desk: Desk, integration: str) -> None:
    outbox_table.drop(desk.engine)
    hints = {"sqlalchemy": "create_tables", "django": "'manage.py migrate qworker'"}

    with pytest.raises(ConfigurationError) as told, desk.begin() as deal:
        deal.publish(Noted(key="a", number=0))

    assert "has no table qworker_outbox" in str(told.value)
    assert hints[integration] in str(told.value)
    outbox_table.create(desk.engine)
    with desk.begin() as deal:
        deal.publish(Noted(key="a", number=1), by=desk.dying)
    assert desk.left() == 1


def test_a_commit_that_fails_publishes_nothing(desk: Desk, worker: TestWorker) -> None:
    def commit_the_impossible() -> None:
        with desk.begin() as deal:
            deal.publish(Noted(key="a", number=0))
            deal.execute("INSERT INTO qworker_outbox (service) VALUES (NULL)")

    with pytest.raises((DBAPIError, Error)):
        commit_the_impossible()
    assert desk.outbox.flush()
    assert (sent(worker), desk.left()) == ([], 0)


def test_what_a_dead_process_left_is_relayed_in_order(desk: Desk, worker: TestWorker) -> None:
    desk.leave(*(Noted(key=key, number=n) for n in range(3) for key in "ab"), Loose(number=7))
    assert sent(worker) == []
    passed = desk.relay(batch=2).turn()
    assert (passed.sent, passed.refused, passed.held) == (7, 0, 0)
    assert by_key(sent(worker)[:6]) == {"a": [0, 1, 2], "b": [0, 1, 2]}
    assert sent(worker)[6:] == [7]
    assert desk.left() == 0
    assert desk.relay().turn().is_last


def test_what_is_sent_at_once_overtakes_nothing_of_its_key(desk: Desk, worker: TestWorker) -> None:
    desk.leave(Noted(key="a", number=0))
    with desk.begin() as deal:
        deal.publish(Noted(key="a", number=1))
        deal.publish(Noted(key="b", number=0))
    assert desk.outbox.flush()
    assert sent(worker) == [("b", 0)], "the key whose past is another's is left to the relay"
    desk.relay().turn()
    assert sent(worker) == [("b", 0), ("a", 0), ("a", 1)]


def test_two_relays_that_overlap_send_first_copies_in_order(
    desk: Desk, worker: TestWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is paused between its look at the rows and its sending, for as long as you like."""
    desk.leave(*(Noted(key="a", number=n) for n in range(3)))
    looks = [desk.rows.read(10), []]
    desk.leave(Noted(key="a", number=3))
    desk.relay().turn()
    monkeypatch.setattr(desk.rows, "read", lambda *_, **__: looks.pop(0))
    desk.relay().turn()
    copies = [number for _, number in sent(worker)]
    assert copies == [0, 1, 2, 3, 0, 1, 2]
    assert [*dict.fromkeys(copies)] == [0, 1, 2, 3]


def test_a_row_is_left_alone_while_its_process_may_be_sending_it(
    desk: Desk, worker: TestWorker
) -> None:
    now = 100.0
    relay = desk.relay(grace=1.0, clock=lambda: now)
    desk.leave(Noted(key="a", number=0))
    for _ in range(3):
        relay.turn()
        assert sent(worker) == []
        now += 0.4
    relay.turn()
    assert sent(worker) == [("a", 0)]


def test_other_services_have_rows_of_their_own(desk: Desk, worker: TestWorker) -> None:
    other = desk.neighbour(App("other"))
    other.leave(Noted(key="a", number=0))
    desk.leave(Noted(key="a", number=1))
    desk.relay().turn()
    assert sent(worker) == [("a", 1)]
    assert desk.left() == 1


class TestRefused:
    """A command that nobody receives."""

    def test_it_stops_its_key_and_no_other(
        self, desk: Desk, worker: TestWorker, caplog: pytest.LogCaptureFixture
    ) -> None:
        now = 0.0
        relay = desk.relay(clock=lambda: now)
        desk.leave(Order(key="a", number=0), Noted(key="a", number=1), Noted(key="b", number=0))
        desk.leave(Order(key="a", number=2))
        passed = relay.turn()
        assert (passed.sent, passed.refused) == (1, 1)
        assert sent(worker) == [("b", 0)]
        (record,) = caplog.records
        assert "a order, is refused" in record.getMessage()
        assert "no queue is bound" in record.getMessage()

        assert relay.turn().sent == 0  # it rests
        now = 1.5
        relay.turn()
        assert len(caplog.records) == 1, "what is known is not told again"
        assert desk.left() == 3

        worker._tap.welcome_commands()
        now = 10.0
        assert relay.turn().sent == 3
        assert sent(worker) == [("b", 0), ("a", 0), ("a", 1), ("a", 2)]

    def test_what_the_process_itself_sends_is_stopped_too(
        self, desk: Desk, worker: TestWorker
    ) -> None:
        with desk.begin() as deal:
            deal.publish(Order(key="a", number=0))
            deal.publish(Noted(key="a", number=1))
            deal.publish(Noted(key="b", number=0))
        assert desk.outbox.flush()
        assert sent(worker) == [("b", 0)]
        assert desk.left() == 2


class TestOutages:
    """What is away costs the caller nothing but time that it does not wait for."""

    @pytest.fixture
    def lonely(self, desk: Desk) -> Iterator[Desk]:
        settings = {"connect_timeout": 0.2}
        lonely = desk.neighbour(App("desk", broker="amqp://127.0.0.1:1", settings=settings))
        yield lonely
        lonely.close()

    def test_no_broker_fails_no_commit(
        self, lonely: Desk, caplog: pytest.LogCaptureFixture
    ) -> None:
        began = time.monotonic()
        for number in range(3):
            with lonely.begin() as deal:
                deal.publish(Noted(key="a", number=number))
            assert lonely.outbox.flush()
        assert time.monotonic() - began < 30
        told = [r for r in caplog.records if r.name == "worker.outbox"]
        assert ["left to the relay" in r.getMessage() for r in told] == [True]
        assert lonely.left() == 3

    def test_a_relay_says_what_is_away_and_keeps_the_rows(self, lonely: Desk) -> None:
        lonely.leave(Noted(key="a", number=0))
        with pytest.raises(BrokerUnreachable):
            lonely.relay().turn()
        assert lonely.left() == 1


class TestInHandlers:
    """The event is a child of the message, and is there if and only if the effect is."""

    def test_its_id_is_that_of_every_run(self, desk: Desk, worker: TestWorker) -> None:
        ids: list[str] = []

        def handle(event: Loose, context: Context) -> None:
            context.publish(Noted(key="a", number=0))
            with desk.effect(context) as deal:
                child = Relayed(Noted(key="a", number=1), headers={"shop": "north"})
                ids.append(deal.publish(child, context))

        event = Loose(number=1)
        for _ in range(2):
            app = App("desk")
            app.on(Loose)(handle)
            app.use(duplicate_everything)
            with TestWorker(app) as again:
                again.publish(event)
                again.run()
                assert again.dead_letters == []
        assert desk.outbox.flush()
        (arrival,) = worker._tap.arrivals()
        assert [arrival.properties["message_id"]] == ids
        assert arrival.properties["correlation_id"] == event.event_id
        headers = arrival.properties["application_headers"]
        assert headers["qw-causation-id"] == event.event_id
        assert headers["shop"] == "north"

    def test_a_second_run_publishes_the_same_id(self, desk: Desk, worker: TestWorker) -> None:
        """Without an inbox the effect comes twice, and so does the event; downstream it is one."""
        app = App("desk")

        @app.on(Loose)
        def handle(_: Loose, context: Context) -> None:
            with desk.begin() as deal:
                deal.publish(Noted(key="a", number=0), context)

        app.use(duplicate_everything)
        with TestWorker(app) as again:
            again.publish(Loose(number=1))
            again.run()
        assert desk.outbox.flush()
        first, second = worker._tap.arrivals()
        assert first.properties["message_id"] == second.properties["message_id"]

    def test_a_handler_that_fails_publishes_nothing(self, desk: Desk, worker: TestWorker) -> None:
        app = App("desk")

        @app.on(Loose)
        def handle(_: Loose, context: Context) -> None:
            with desk.effect(context) as deal:
                deal.publish(Noted(key="a", number=0), context)
                if context.attempt < 3:
                    raise ValueError("not yet")

        with TestWorker(app) as again:
            again.publish(Loose(number=1))
            again.run()
        assert desk.outbox.flush()
        assert sent(worker) == [("a", 0)]


def test_a_header_that_json_does_not_know_is_refused_at_once(desk: Desk) -> None:
    with desk.begin() as deal, pytest.raises(TypeError, match="as JSON"):
        deal.publish(Loose(number=1), headers={"raw": b"\0"})


def test_a_relayed_without_a_context_is_refused(desk: Desk) -> None:
    with desk.begin() as deal, pytest.raises(TypeError, match="needs its context"):
        deal.publish(Relayed(Loose(number=1)))
    with desk.begin() as deal, pytest.raises(TypeError, match="not an Event"):
        deal.publish({"number": 1})


def test_the_relay_works_off_many_rows_with_few_confirms(
    desk: Desk, worker: TestWorker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    desk.leave(*(Noted(key=f"k{n % 50}", number=n // 50) for n in range(1000)))
    assert desk.relay().turn().sent == 1000
    assert by_key(sent(worker)) == {f"k{k}": [*range(20)] for k in range(50)}


def test_rows_can_be_looked_at(desk: Desk) -> None:
    desk.leave(Noted(key="a", number=0))
    with desk.engine.connect() as connection:
        row = connection.execute(select(outbox_table)).mappings().one()
    assert (row["service"], row["lane"], row["name"]) == ("desk", "a", "noted")
    assert row["routing_key"] == "noted"


@pytest.mark.parametrize(
    ("damaged", "reason"),
    [
        (("properties", "{"), "its properties are no JSON"),
        (("headers", "[]"), "its headers are no JSON object"),
        (("properties", "{}"), "its properties have no message_id"),
    ],
)
def test_a_row_that_was_damaged_stops_its_key_alone(
    desk: Desk,
    worker: TestWorker,
    caplog: pytest.LogCaptureFixture,
    damaged: tuple[str, str],
    reason: str,
) -> None:
    """By hand, say: whatever is in it, the relay lives."""
    _damage_and_relay(desk, worker, caplog, damaged, reason)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_so_does_a_body_that_is_no_bytes_where_columns_have_no_types(
    desk: Desk, worker: TestWorker, caplog: pytest.LogCaptureFixture
) -> None:
    reason = "its body is no bytes, but str"
    _damage_and_relay(desk, worker, caplog, ("body", "some text"), reason)


def _damage_and_relay(
    desk: Desk,
    worker: TestWorker,
    caplog: pytest.LogCaptureFixture,
    damaged: tuple[str, str],
    reason: str,
) -> None:
    column, value = damaged
    desk.leave(*(Noted(key=key, number=n) for n in range(2) for key in "ab"))
    with desk.engine.begin() as connection:
        first = connection.scalar(select(func.min(outbox_table.c.sequence)))
        damaging = update(outbox_table).where(outbox_table.c.sequence == first)
        connection.execute(damaging.values({column: literal(value, String)}))
    relay = desk.relay()
    for _ in range(2):
        assert relay.turn().refused == 1
    assert sent(worker) == [("b", 0), ("b", 1)]
    (told,) = caplog.messages
    assert told.startswith(f"row {first} of the outbox, a message, is refused, ")
    assert reason in told
    with desk.engine.begin() as connection:
        connection.execute(delete(outbox_table).where(outbox_table.c.sequence == first))
    desk.relay().turn()
    assert sent(worker)[2:] == [("a", 1)]
