"""The outbox on SQLAlchemy: what leaves, when, and in which order, on each database."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, insert, select
from sqlalchemy import event as events
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session
from sqlalchemy.pool import NullPool
from worker.contrib.outbox import OutboxUnavailable
from worker.contrib.sqlalchemy import Inbox, OutboxRows, create_tables
from worker.contrib.sqlalchemy.tables import outbox_table

from databases import Database
from outboxes import Desk, Loose, Noted, Order, by_key, sent
from worker import App, BrokerUnreachable, ConfigurationError, Context, Relayed
from worker.testing import TestWorker, duplicate_everything


class Base(DeclarativeBase):
    """The tables of the application."""


class Thing(Base):
    """What an event may speak of."""

    __tablename__ = "thing"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)


@pytest.fixture
def engine(database: Database) -> Iterator[Engine]:
    engine = create_engine(database.url)
    Base.metadata.create_all(engine)
    create_tables(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def desk(engine: Engine) -> Desk:
    return Desk(App("desk"), engine)


@pytest.fixture
def worker(desk: Desk) -> Iterator[TestWorker]:
    """The broker, and all that reached it."""
    with TestWorker(desk.app) as worker:
        yield worker


def test_an_event_leaves_after_the_commit_and_not_before(desk: Desk, worker: TestWorker) -> None:
    with desk.begin() as session:
        desk.outbox.publish_on_commit(session, Noted(key="a", number=0))
        assert desk.outbox.flush()
        assert sent(worker) == []
    assert desk.outbox.flush()
    assert sent(worker) == [("a", 0)]
    assert desk.left() == 0


def test_it_is_the_event_as_the_app_would_publish_it(desk: Desk, worker: TestWorker) -> None:
    event = Noted(key="a", number=0)
    with desk.begin() as session:
        told = desk.outbox.publish_on_commit(
            session, event, headers={"shop": "north"}, priority=3, correlation_id="story"
        )
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
    session = desk.sessions()
    desk.outbox.publish_on_commit(session, Noted(key="a", number=0))
    session.rollback()
    desk.outbox.publish_on_commit(session, Noted(key="a", number=1))
    session.close()
    desk.outbox.publish_on_commit(session, Noted(key="a", number=2))
    session.commit()
    session.commit()
    session.close()
    assert desk.outbox.flush()
    assert sent(worker) == [("a", 2)]


def test_of_a_savepoint_only_what_is_kept_leaves(desk: Desk, worker: TestWorker) -> None:
    with desk.begin() as session:
        desk.outbox.publish_on_commit(session, Noted(key="a", number=0))
        with session.begin_nested():
            desk.outbox.publish_on_commit(session, Noted(key="a", number=1))
            lost = session.begin_nested()
            desk.outbox.publish_on_commit(session, Noted(key="a", number=-1))
            lost.rollback()
        undone = session.begin_nested()
        with session.begin_nested():
            desk.outbox.publish_on_commit(session, Noted(key="a", number=-2))
        undone.rollback()
        desk.outbox.publish_on_commit(session, Noted(key="a", number=2))
    assert desk.outbox.flush()
    assert sent(worker) == [("a", 0), ("a", 1), ("a", 2)]


def test_a_savepoint_that_fails_as_it_is_flushed_takes_its_events_along(
    desk: Desk, worker: TestWorker
) -> None:
    def publish_with_what_is_there_already(session: Session) -> None:
        with session.begin_nested():
            desk.outbox.publish_on_commit(session, Noted(key="a", number=-1))
            session.add(Thing(id=1))

    with desk.begin() as session:
        session.add(Thing(id=1))
    with desk.begin() as session:
        with pytest.raises(IntegrityError):
            publish_with_what_is_there_already(session)
        desk.outbox.publish_on_commit(session, Noted(key="a", number=0))
    assert desk.outbox.flush()
    assert sent(worker) == [("a", 0)]


@pytest.mark.parametrize(
    "moment", ["before_flush", "after_flush", "after_flush_postexec", "before_commit"]
)
def test_what_is_published_from_an_event_of_the_session_leaves_too(
    desk: Desk, worker: TestWorker, moment: str
) -> None:
    """Also where that is the first that the session publishes, in the midst of its commit."""
    for is_first in (True, False):
        session = desk.sessions()

        def publish(session: Session, *_: object) -> None:
            desk.outbox.publish_on_commit(session, Noted(key="a", number=1))

        if not is_first:
            desk.outbox.publish_on_commit(session, Noted(key="a", number=0))
        events.listen(session, moment, publish)
        session.add(Thing(id=int(is_first)))
        session.commit()
        session.close()
    assert desk.outbox.flush()
    assert sent(worker) == [("a", 1), ("a", 0), ("a", 1)]


def test_a_registry_of_sessions_is_as_good_as_a_session(desk: Desk, worker: TestWorker) -> None:
    registry = scoped_session(desk.sessions)
    desk.outbox.publish_on_commit(registry, Noted(key="a", number=0))
    registry.commit()
    registry.remove()
    with desk.begin():
        pass
    assert desk.outbox.flush()
    assert sent(worker) == [("a", 0)]


def test_a_commit_that_fails_publishes_nothing(desk: Desk, worker: TestWorker) -> None:
    def commit_the_impossible() -> None:
        with desk.begin() as session:
            desk.outbox.publish_on_commit(session, Noted(key="a", number=0))
            session.execute(insert(outbox_table), [{"service": None}])

    with pytest.raises(DBAPIError):
        commit_the_impossible()
    assert desk.outbox.flush()
    assert (sent(worker), desk.left()) == ([], 0)


def test_a_session_of_asyncio_publishes_by_the_same_call(
    desk: Desk, database: Database, worker: TestWorker
) -> None:
    async def publish() -> None:
        engine = create_async_engine(database.async_url, poolclass=NullPool)
        async with async_sessionmaker(engine).begin() as session:
            desk.outbox.publish_on_commit(session, Noted(key="a", number=0))
            async with session.begin_nested():
                desk.outbox.publish_on_commit(session, Noted(key="a", number=1))

    asyncio.run(publish())
    assert desk.outbox.flush()
    assert sent(worker) == [("a", 0), ("a", 1)]


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
    with desk.begin() as session:
        desk.outbox.publish_on_commit(session, Noted(key="a", number=1))
        desk.outbox.publish_on_commit(session, Noted(key="b", number=0))
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
    other = Desk(App("other"), desk.engine)
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
        with desk.begin() as session:
            desk.outbox.publish_on_commit(session, Order(key="a", number=0))
            desk.outbox.publish_on_commit(session, Noted(key="a", number=1))
            desk.outbox.publish_on_commit(session, Noted(key="b", number=0))
        assert desk.outbox.flush()
        assert sent(worker) == [("b", 0)]
        assert desk.left() == 2


class TestOutages:
    """What is away costs the caller nothing but time that it does not wait for."""

    @pytest.fixture
    def lonely(self, engine: Engine) -> Desk:
        settings = {"connect_timeout": 0.2}
        return Desk(App("desk", broker="amqp://127.0.0.1:1", settings=settings), engine)

    def test_no_broker_fails_no_commit(
        self, lonely: Desk, caplog: pytest.LogCaptureFixture
    ) -> None:
        began = time.monotonic()
        for number in range(3):
            with lonely.begin() as session:
                lonely.outbox.publish_on_commit(session, Noted(key="a", number=number))
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

    def test_a_database_without_the_table_is_told_so(self, database: Database) -> None:
        engine = create_engine(database.url)
        outbox_table.drop(engine, checkfirst=True)
        rows = OutboxRows.open(database.url, "desk")
        with pytest.raises(ConfigurationError, match="has no table qworker_outbox"):
            rows.check()
        with pytest.raises(OutboxUnavailable, match="qworker_outbox"):
            rows.newest()
        rows.close()
        engine.dispose()


class TestInHandlers:
    """The event is a child of the message, and is there if and only if the effect is."""

    def test_its_id_is_that_of_every_run(self, desk: Desk, worker: TestWorker) -> None:
        inbox = Inbox(desk.sessions)
        ids: list[str] = []

        def handle(event: Loose, context: Context) -> None:
            context.publish(Noted(key="a", number=0))
            with inbox.transaction(context) as session:
                child = Relayed(Noted(key="a", number=1), headers={"shop": "north"})
                ids.append(desk.outbox.publish_on_commit(session, child, context))

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
            with desk.begin() as session:
                desk.outbox.publish_on_commit(session, Noted(key="a", number=0), context)

        app.use(duplicate_everything)
        with TestWorker(app) as again:
            again.publish(Loose(number=1))
            again.run()
        assert desk.outbox.flush()
        first, second = worker._tap.arrivals()
        assert first.properties["message_id"] == second.properties["message_id"]

    def test_a_handler_that_fails_publishes_nothing(self, desk: Desk, worker: TestWorker) -> None:
        inbox = Inbox(desk.sessions)
        app = App("desk")

        @app.on(Loose)
        def handle(_: Loose, context: Context) -> None:
            with inbox.transaction(context) as session:
                desk.outbox.publish_on_commit(session, Noted(key="a", number=0), context)
                if context.attempt < 3:
                    raise ValueError("not yet")

        with TestWorker(app) as again:
            again.publish(Loose(number=1))
            again.run()
        assert desk.outbox.flush()
        assert sent(worker) == [("a", 0)]


def test_a_header_that_json_does_not_know_is_refused_at_once(desk: Desk) -> None:
    with desk.sessions() as session, pytest.raises(TypeError, match="as JSON"):
        desk.outbox.publish_on_commit(session, Loose(number=1), headers={"raw": b"\0"})


def test_a_relayed_without_a_context_is_refused(desk: Desk) -> None:
    with desk.sessions() as session, pytest.raises(TypeError, match="needs its context"):
        desk.outbox.publish_on_commit(session, Relayed(Loose(number=1)))
    with desk.sessions() as session, pytest.raises(TypeError, match="not an Event"):
        desk.outbox.publish_on_commit(session, {"number": 1})


def test_publishing_begins_a_transaction_and_talks_to_nobody(desk: Desk) -> None:
    session = Session()  # of no database
    desk.outbox.publish_on_commit(session, Loose(number=1))
    assert session.in_transaction()
    session.close()


def test_the_relay_works_off_many_rows_with_few_confirms(
    desk: Desk, worker: TestWorker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    desk.leave(*(Noted(key=f"k{n % 50}", number=n // 50) for n in range(1000)))
    assert desk.relay().turn().sent == 1000
    assert by_key(sent(worker)) == {f"k{k}": [*range(20)] for k in range(50)}


def test_a_url_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    for url in ("nonsense", "oracle+nothing://x"):
        with pytest.raises(ConfigurationError, match="the database"):
            OutboxRows.open(url, "desk")


def test_rows_can_be_looked_at(desk: Desk) -> None:
    desk.leave(Noted(key="a", number=0))
    with desk.sessions() as session:
        row = session.execute(select(outbox_table)).mappings().one()
    assert (row["service"], row["lane"], row["name"]) == ("desk", "a", "noted")
    assert row["routing_key"] == "noted"
