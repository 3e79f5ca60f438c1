"""The outbox on Django: atomic blocks, requests, test cases, deferred constraints, its rows."""

from __future__ import annotations

import unittest
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from types import ModuleType
from typing import Any

import pytest
from django.core.management import call_command
from django.db import IntegrityError, connections, transaction
from django.db.transaction import TransactionManagementError
from django.http import HttpResponse
from django.test import Client, TestCase, override_settings
from django.urls import path
from sqlalchemy import Engine, text
from worker.contrib.django import Inbox, Outbox, OutboxRows
from worker.contrib.django.models import OutboxEntry
from worker.contrib.django.pending import Pending
from worker.contrib.outbox import OutboxUnavailable

from databases import Database
from django_settings import configuration
from djangos import pointed_at
from outboxes import Desk, Loose, Noted, sent
from waiting import until
from worker import App, ConfigurationError, Context
from worker.testing import TestWorker

on_postgresql = pytest.mark.parametrize("database", ["postgresql"], indirect=True)


@pytest.fixture
def integration() -> str:
    return "django"


@pytest.fixture(autouse=True)
def _closed(desk: Desk) -> Iterator[None]:
    """Leave no connection of this thread open."""
    yield
    connections["default"].close()


def test_without_a_transaction_it_is_an_error(desk: Desk, worker: TestWorker) -> None:
    """As ``select_for_update`` is: nothing holds the event and its data together."""
    with pytest.raises(TransactionManagementError, match=r"into one transaction\.atomic"):
        desk.outbox.publish_on_commit(Noted(key="a", number=0))
    assert desk.outbox.flush()
    assert (sent(worker), desk.left()) == ([], 0)


@on_postgresql
def test_where_transactions_are_managed_by_hand_it_leaves_with_the_commit(
    desk: Desk, worker: TestWorker
) -> None:
    transaction.set_autocommit(False)
    with pytest.raises(TransactionManagementError):
        desk.outbox.publish_on_commit(Noted(key="a", number=-1))
    for number in range(2):
        with transaction.atomic():
            desk.outbox.publish_on_commit(Noted(key="a", number=number))
        assert desk.outbox.flush()
        assert len(sent(worker)) == number
        transaction.commit()
        transaction.commit()  # what is written already is still registered
        assert desk.outbox.flush()
        assert len(sent(worker)) == number + 1
    with transaction.atomic():
        desk.outbox.publish_on_commit(Noted(key="a", number=-2))
    transaction.rollback()
    transaction.set_autocommit(True)
    assert desk.outbox.flush()
    assert (sent(worker), desk.left()) == ([("a", 0), ("a", 1)], 0)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_where_they_are_on_sqlite_it_is_an_error(desk: Desk, worker: TestWorker) -> None:
    """Its driver begins no transaction for a savepoint: the block's end would be the commit."""
    told = "has autocommit off, and on SQLite"
    transaction.set_autocommit(False)
    with pytest.raises(TransactionManagementError, match=told), transaction.atomic():
        desk.outbox.publish_on_commit(Noted(key="a", number=-1))
    transaction.rollback()
    transaction.set_autocommit(True)
    assert desk.outbox.flush()
    assert (sent(worker), desk.left()) == ([], 0)


def test_no_callback_of_somebody_else_keeps_it_back(desk: Desk, worker: TestWorker) -> None:
    def fail() -> None:
        raise ValueError("no")

    def publish_behind_it() -> None:
        with transaction.atomic():
            transaction.on_commit(fail)
            desk.outbox.publish_on_commit(Noted(key="a", number=0))

    with pytest.raises(ValueError, match="no"):
        publish_behind_it()
    assert desk.outbox.flush()
    assert sent(worker) == [("a", 0)]


def test_a_connection_that_is_closed_takes_its_events_along(desk: Desk, worker: TestWorker) -> None:
    with transaction.atomic():
        desk.outbox.publish_on_commit(Noted(key="a", number=-1))
        connections["default"].close()
    with transaction.atomic():
        desk.outbox.publish_on_commit(Noted(key="a", number=0))
    assert desk.outbox.flush()
    assert sent(worker) == [("a", 0)]


def test_a_transaction_whose_rows_cannot_be_written_is_rolled_back(
    desk: Desk, worker: TestWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where that is no error of the database, for which Django has no rule."""

    def fail(*_: object) -> None:
        raise ValueError("no")

    with monkeypatch.context() as patch:
        patch.setattr(Pending, "_write", fail)
        with pytest.raises(ValueError, match="no"), transaction.atomic():
            desk.outbox.publish_on_commit(Noted(key="a", number=-1))
    with transaction.atomic():
        desk.outbox.publish_on_commit(Noted(key="a", number=0))
    assert desk.outbox.flush()
    assert sent(worker) == [("a", 0)]


class TestRequests:
    """Views under ATOMIC_REQUESTS, which know nothing of the transaction that they are in."""

    @pytest.fixture
    def client(self, desk: Desk, database: Database) -> Iterator[Client]:
        def change(_: object, word: str) -> HttpResponse:
            desk.outbox.publish_on_commit(Noted(key=word, number=0))
            if word == "undone":
                raise ValueError("no")
            return HttpResponse("ok")

        urls: Any = ModuleType("urls")
        urls.urlpatterns = [path("<str:word>", change)]
        atomic = {**configuration(database.url), "ATOMIC_REQUESTS": True}
        with (
            pointed_at(database, default=atomic),
            override_settings(ROOT_URLCONF=urls, ALLOWED_HOSTS=["*"]),
        ):
            yield Client(raise_request_exception=False)

    def test_what_a_view_publishes_leaves_with_it(
        self, desk: Desk, client: Client, worker: TestWorker
    ) -> None:
        for word, status in (("first", 200), ("undone", 500), ("second", 200)):
            assert client.get(f"/{word}").status_code == status
        assert desk.outbox.flush()
        assert sent(worker) == [("first", 0), ("second", 0)]


def outcome(case: type[TestCase]) -> unittest.TestResult:
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
    assert result.testsRun
    assert [*result.errors, *result.failures] == []
    return result


def test_in_a_test_case_what_is_captured_can_be_sent(desk: Desk, worker: TestWorker) -> None:
    """No transaction of it ever commits."""

    class Case(TestCase):
        def test_it(self) -> None:
            with self.captureOnCommitCallbacks() as captured, transaction.atomic():
                desk.outbox.publish_on_commit(Noted(key="a", number=-1))
            assert repr(captured[0]).startswith("<noted ")
            with self.captureOnCommitCallbacks(execute=True), transaction.atomic():
                desk.outbox.publish_on_commit(Noted(key="a", number=0))
            assert sent(worker) == [("a", 0)]

    outcome(Case)
    assert desk.outbox.flush()
    assert (sent(worker), desk.left()) == ([("a", 0)], 0)


@pytest.mark.parametrize("has_own", [False, True])
def test_behind_the_block_of_an_inbox_a_handler_is_rejected_and_not_taken_for_done(
    desk: Desk, *, has_own: bool
) -> None:
    """Its next attempt would find the id, and the event would be lost in silence."""
    app = App("desk")

    @app.on(Loose)
    def handle(_: Loose, context: Context) -> None:
        with Inbox().transaction(context):
            pass
        with transaction.atomic() if has_own else nullcontext():
            desk.outbox.publish_on_commit(Noted(key="a", number=0), context)

    with TestWorker(app) as worker:
        worker.publish(Loose(number=1))
        worker.run()
        (letter,) = worker.dead_letters
    assert "publish_on_commit behind the transaction that holds its effect" in letter.reason
    assert desk.left() == 0


def test_outside_of_a_transaction_a_handler_is_rejected_too(desk: Desk) -> None:
    app = App("desk")

    @app.on(Loose)
    def handle(_: Loose, context: Context) -> None:
        desk.outbox.publish_on_commit(Noted(key="a", number=0), context)

    with TestWorker(app) as worker:
        worker.publish(Loose(number=1))
        worker.run()
        (letter,) = worker.dead_letters
    assert "publish_on_commit needs a transaction" in letter.reason


def test_in_a_test_case_a_handler_has_its_inbox(desk: Desk) -> None:
    app = App("desk")

    @app.on(Loose)
    def handle(_: Loose, context: Context) -> None:
        with Inbox().transaction(context):
            desk.outbox.publish_on_commit(Noted(key="a", number=0), context)

    class Case(TestCase):
        def test_it(self) -> None:
            event = Loose(number=1)
            for times in (1, 0):
                with TestWorker(app) as again, self.captureOnCommitCallbacks() as captured:
                    again.publish(event)
                    again.run()
                    assert again.dead_letters == []
                assert len(captured) == times

    outcome(Case)


class TestDeferred:
    """Foreign keys of Django's, which are looked at by the commit; MySQL does that at once."""

    @pytest.fixture(autouse=True)
    def _tables(self, engine: Engine) -> None:
        when = "" if engine.dialect.name == "mysql" else "DEFERRABLE INITIALLY DEFERRED"
        reference = f"CREATE TABLE part (whole INTEGER REFERENCES whole (id) {when})"
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE whole (id INTEGER PRIMARY KEY)"))
            connection.execute(text(reference))
            connection.execute(text("INSERT INTO whole VALUES (1)"))

    def test_one_that_is_broken_publishes_nothing(self, desk: Desk, worker: TestWorker) -> None:
        def add_a_part_of_nothing() -> None:
            with desk.begin() as deal:
                deal.publish(Noted(key="a", number=-1))
                deal.execute("INSERT INTO part VALUES (2)")

        with pytest.raises(IntegrityError):
            add_a_part_of_nothing()
        with desk.begin() as deal:
            deal.publish(Noted(key="a", number=0))
        assert desk.outbox.flush()
        assert sent(worker) == [("a", 0)]

    @on_postgresql
    def test_who_has_to_wait_for_it_comes_after_whom_it_waited_for(
        self, desk: Desk, worker: TestWorker
    ) -> None:
        """Though it has come to its commit first."""

        def add_a_part() -> None:
            with desk.begin() as deal:
                deal.execute("INSERT INTO part VALUES (1)")
                deal.publish(Noted(key="a", number=1), by=desk.dying)

        with ThreadPoolExecutor(1) as other, desk.begin() as deal:
            deal.execute("SELECT 1 FROM whole FOR UPDATE")
            adding = other.submit(add_a_part)
            until(lambda: waits(desk.engine), message="the other one waits at its commit")
            deal.publish(Noted(key="a", number=0), by=desk.dying)
        adding.result(30)
        desk.relay().turn()
        assert sent(worker) == [("a", 0), ("a", 1)]


def waits(engine: Engine) -> bool:
    """Tell whether a session waits for a lock."""
    with engine.connect() as connection:
        return bool(connection.scalar(text("SELECT count(*) FROM pg_locks WHERE NOT granted")))


class TestRows:
    """The rows as a relay, or a person, gets at them."""

    def test_a_database_without_the_table_is_told_so(self, desk: Desk, engine: Engine) -> None:
        with engine.begin() as connection:
            connection.execute(text("DROP TABLE qworker_outbox"))
        rows = OutboxRows.open("django://default", "desk")
        with pytest.raises(ConfigurationError, match=r"manage\.py migrate qworker"):
            rows.check()
        with pytest.raises(OutboxUnavailable, match="qworker_outbox"):
            rows.newest()
        rows.close()

    def test_a_database_that_is_not_in_the_settings_is_told_so(self, desk: Desk) -> None:
        with pytest.raises(ConfigurationError, match="no database 'other'; they have default"):
            OutboxRows.open("django://other", "desk")

    def test_they_can_be_looked_at_by_a_model(self, desk: Desk) -> None:
        desk.leave(Noted(key="a", number=0))
        entry = OutboxEntry.objects.get()
        assert (entry.service, entry.lane, entry.name) == ("desk", "a", "noted")
        assert str(entry) == f"{entry.sequence} noted"

    @on_postgresql
    def test_a_connection_that_was_closed_meanwhile_is_opened_anew(
        self, desk: Desk, worker: TestWorker, engine: Engine
    ) -> None:
        for number in range(2):
            with desk.begin() as deal:
                deal.publish(Noted(key="a", number=number))
            assert desk.outbox.flush()
            with engine.connect() as connection:
                connection.execute(
                    text(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                        " WHERE pid <> pg_backend_pid() AND datname = current_database()"
                    )
                )
        assert sent(worker) == [("a", 0), ("a", 1)]

    def test_what_is_open_is_not_seen_by_who_reads_in_its_thread(self, desk: Desk) -> None:
        with desk.begin() as deal:
            deal.execute(
                "INSERT INTO qworker_outbox (service, lane, message_id, name, exchange,"
                " routing_key, mandatory, properties, headers, body, at)"
                " VALUES ('desk', 'a', 'm', 'n', 'e', 'r', :no, '{}', '{}', :body, 0)",
                no=False,
                body=b"",
            )
            if desk.engine.dialect.name == "postgresql":  # a file's reader would wait
                assert desk.rows.newest() == 0


def test_databases_have_outboxes_of_their_own(
    desk: Desk, database: Database, worker: TestWorker, tmp_path: Any
) -> None:
    other = configuration(f"sqlite:///{tmp_path / 'other.db'}")
    with pointed_at(database, other=other):
        call_command("migrate", "qworker", database="other", verbosity=0)
        outbox = Outbox(desk.app, "other")
        with transaction.atomic("other"):
            with pytest.raises(TransactionManagementError):
                desk.outbox.publish_on_commit(Noted(key="a", number=-1))
            outbox.publish_on_commit(Noted(key="a", number=0))
        assert outbox.flush()
        assert sent(worker) == [("a", 0)]
        outbox._sender._store.close()


def test_a_database_whose_order_is_not_known_is_refused(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, transaction.atomic():
        patch.setattr(type(connections["default"]), "vendor", "oracle")
        with pytest.raises(ConfigurationError, match="in which order oracle commits"):
            desk.outbox.publish_on_commit(Noted(key="a", number=0))


def test_the_migrations_are_those_of_the_models(desk: Desk) -> None:
    call_command("makemigrations", "qworker", check=True, dry_run=True, verbosity=0)


def test_the_migrations_can_be_taken_back(desk: Desk, engine: Engine) -> None:
    call_command("migrate", "qworker", "zero", verbosity=0)
    call_command("migrate", "qworker", verbosity=0)
    desk.leave(Noted(key="a", number=0))
    assert desk.left() == 1
