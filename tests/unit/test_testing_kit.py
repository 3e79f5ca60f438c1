"""How to test an app: what ``worker.testing`` gives, one page to read from top to bottom."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from worker import App, Command, Context, Event, Reject, Retry, RetryPolicy, Unroutable
from worker.ending import Finish
from worker.telemetry import AttemptFailed, KeyParked, OutageBegan, OutageEnded
from worker.testing import FakeClock, TestWorker, duplicate_everything

ROOT = Path(__file__).parents[2]


class UserDeposited(Event, name="user.deposited", key="user_id"):
    user_id: str
    amount: Decimal = Decimal(5)


class BalanceChanged(Event, name="balance.changed", key="user_id"):
    user_id: str


class SendEmail(Command, name="mailer.send_email", to="mailer", key="user_id"):
    user_id: str


def deposit(user: str = "u1") -> UserDeposited:
    return UserDeposited(user_id=user)


class TestARun:
    def test_publish_run_and_look(self) -> None:
        app = App("bank")
        balances: dict[str, Decimal] = {}

        @app.on(UserDeposited)
        def record(event: UserDeposited) -> None:
            balances[event.user_id] = balances.get(event.user_id, Decimal(0)) + event.amount

        with TestWorker(app) as worker:
            event = deposit()
            worker.publish(event)
            worker.run()

            assert worker.executed == [("record", event.event_id, 1)]
            assert worker.dead_letters == []
        assert balances == {"u1": 5}

    def test_a_second_copy_is_not_executed(self) -> None:
        app = App("bank")
        app.on(UserDeposited, name="record")(lambda event: None)

        with TestWorker(app) as worker:
            event = deposit()
            for _ in range(3):
                worker.publish(event)
            worker.run()

            assert worker.executed == [("record", event.event_id, 1)]

    def test_every_handler_of_an_event_sees_it(self) -> None:
        app = App("bank")
        app.on(UserDeposited, name="record")(lambda event: None)

        @app.on("user.*")
        async def audit(event: dict[str, Any]) -> None:
            assert event["user_id"] == "u1"

        with TestWorker(app) as worker:
            worker.publish(deposit())
            worker.run()

            assert [name for name, *_ in worker.executed] == ["record", "audit"]

    def test_handlers_run_in_the_thread_of_the_test(self) -> None:
        """So they may use what belongs to it: here, a database that other threads may not touch."""
        app = App("bank")
        database = sqlite3.connect(":memory:")
        database.execute("CREATE TABLE deposits (user_id TEXT)")

        @app.on(UserDeposited)
        def record(event: UserDeposited) -> None:
            database.execute("INSERT INTO deposits VALUES (?)", (event.user_id,))

        with TestWorker(app) as worker:
            worker.publish(deposit())
            worker.run()

        assert database.execute("SELECT * FROM deposits").fetchall() == [("u1",)]
        database.close()

    def test_coroutine_handlers_of_different_keys_run_together(self) -> None:
        app = App("bank")
        log: list[str] = []

        @app.on(UserDeposited)
        async def record(event: UserDeposited) -> None:
            log.append(f"{event.user_id} in")
            await asyncio.sleep(0)
            log.append(f"{event.user_id} out")

        with TestWorker(app) as worker:
            worker.publish(deposit("u1"))
            worker.publish(deposit("u2"))
            worker.run()

        assert log == ["u1 in", "u2 in", "u1 out", "u2 out"]

    def test_a_test_may_be_a_coroutine_itself(self) -> None:
        app = App("bank")
        app.on(UserDeposited, name="plain")(lambda event: asyncio.run(asyncio.sleep(0)))

        @app.on(UserDeposited)
        async def coroutine(event: UserDeposited) -> None:
            await asyncio.sleep(0)

        async def test() -> list[str]:
            with TestWorker(app) as worker:
                worker.publish(deposit())
                worker.run()
                return [name for name, *_ in worker.executed]

        assert asyncio.run(test()) == ["plain", "coroutine"]

    def test_the_lifespan_of_the_app_is_the_block(self) -> None:
        app = App("bank")
        log: list[str] = []

        @app.lifespan
        def resources() -> Iterator[str]:
            log.append("open")
            yield "a connection"
            log.append("close")

        @app.on(UserDeposited)
        def record(event: UserDeposited, ctx: Context) -> None:
            log.append(ctx.state)

        with TestWorker(app) as worker:
            worker.publish(deposit())
            worker.run()

        assert log == ["open", "a connection", "close"]

    def test_each_key_keeps_its_order_over_any_number_of_shards(self) -> None:
        app = App("bank")
        seen: dict[str, list[int]] = {}

        @app.on(UserDeposited)
        def record(event: UserDeposited, ctx: Context) -> None:
            seen.setdefault(event.user_id, []).append(int(event.amount))

        with TestWorker(app, settings={"shards": 4}) as worker:
            for number in range(40):
                worker.publish(UserDeposited(user_id=f"u{number % 5}", amount=Decimal(number)))
            worker.run()

        assert all(numbers == sorted(numbers) for numbers in seen.values())
        assert sum(map(len, seen.values())) == 40


class TestWhatHandlersPublish:
    def app(self) -> App:
        app = App("bank")

        @app.on(UserDeposited)
        def record(event: UserDeposited, ctx: Context) -> None:
            ctx.publish(BalanceChanged(user_id=event.user_id))
            ctx.publish(SendEmail(user_id=event.user_id))

        return app

    def test_children_are_seen_as_events(self) -> None:
        with TestWorker(self.app()) as worker:
            worker.publish(deposit("u7"))
            worker.run()

            assert [event.user_id for event in worker.events_of(BalanceChanged)] == ["u7"]
            assert [command.user_id for command in worker.events_of(SendEmail)] == ["u7"]
            assert worker.events_of(UserDeposited) == [], "the test published it, not a handler"

    def test_and_as_messages(self) -> None:
        with TestWorker(self.app()) as worker:
            event_id = worker.publish(deposit("u7"), correlation_id="story")
            worker.run()
            first, second = worker.published

            assert (first.name, first.key, first.payload) == (
                "balance.changed",
                "u7",
                {"user_id": "u7"},
            )
            assert second.name == "mailer.send_email"
            assert first.headers["qw-causation-id"] == event_id
            assert first.properties["correlation_id"] == "story"

    def test_a_handler_that_fails_publishes_nothing(self) -> None:
        app = App("bank")

        @app.on(UserDeposited, retry=RetryPolicy(attempts=2))
        def record(event: UserDeposited, ctx: Context) -> None:
            ctx.publish(BalanceChanged(user_id=event.user_id))
            raise ValueError("after all, no")

        with TestWorker(app) as worker:
            worker.publish(deposit())
            worker.run()

            assert worker.published == []

    def test_what_a_handler_publishes_through_the_app_is_seen_too(self) -> None:
        app = App("bank")
        app.on(UserDeposited, name="record")(
            lambda event: app.publish(BalanceChanged(user_id=event.user_id))
        )

        with TestWorker(app) as worker:
            worker.publish(deposit())
            worker.run()

            assert len(worker.events_of(BalanceChanged)) == 1

    def test_children_that_the_app_itself_observes_are_executed(self) -> None:
        app = self.app()
        app.on(BalanceChanged, name="notice")(lambda event: None)

        with TestWorker(app) as worker:
            worker.publish(deposit())
            worker.run()

            assert [name for name, *_ in worker.executed] == ["record", "notice"]


class TestFailures:
    def test_retries_take_no_time(self) -> None:
        app = App("bank")

        @app.on(UserDeposited, retry=RetryPolicy(attempts=5, first_wait=3600, max_wait=86400))
        def record(event: UserDeposited, ctx: Context) -> None:
            if ctx.attempt < 5:
                raise ConnectionError("the bank is closed")

        begun = time.monotonic()
        with TestWorker(app) as worker:
            opened = worker.clock()
            event_id = worker.publish(deposit())
            worker.run()

            assert worker.executed == [("record", event_id, n) for n in (1, 2, 3, 4, 5)]
            assert worker.clock() - opened > 10 * 3600
        assert time.monotonic() - begun < 5

    def test_time_can_be_moved_by_hand(self) -> None:
        app = App("bank")

        @app.on(UserDeposited)
        def record(event: UserDeposited, ctx: Context) -> None:
            if ctx.attempt == 1:
                raise Retry(delay=60)

        with TestWorker(app) as worker:
            worker.publish(deposit())
            worker.run(advance=False)
            worker.clock.advance(59)
            worker.run(advance=False)
            assert len(worker.executed) == 1

            worker.clock.advance(1)
            worker.run(advance=False)
            assert len(worker.executed) == 2

    def test_the_runtime_tells_what_happened(self) -> None:
        app = App("bank")

        @app.on(UserDeposited)
        def record(event: UserDeposited, ctx: Context) -> None:
            if ctx.attempt == 1:
                raise Retry("the bank is closed", delay=60)

        with TestWorker(app) as worker:
            event_id = worker.publish(deposit())
            worker.run()

            assert worker.runtime_events == [
                AttemptFailed("record", event_id, 1, 60, "Retry: the bank is closed")
            ]

    def test_a_message_that_cannot_be_handled_is_a_dead_letter(self) -> None:
        app = App("bank")

        @app.on(UserDeposited)
        def record(event: UserDeposited) -> None:
            raise Reject("the account is closed")

        with TestWorker(app) as worker:
            event_id = worker.publish(deposit("u9"))
            worker.run()
            (letter,) = worker.dead_letters

            assert letter.message_id == event_id
            assert letter.handler == "record"
            assert letter.reason == "rejected by the handler: the account is closed"
            assert letter.payload == {"user_id": "u9", "amount": "5"}
            assert letter.key == "u9"

    def test_attempts_that_are_used_up_leave_a_traceback(self) -> None:
        app = App("bank")

        @app.on(UserDeposited, retry=RetryPolicy(attempts=3))
        def record(event: UserDeposited) -> None:
            raise ZeroDivisionError("oh")

        with TestWorker(app) as worker:
            worker.publish(deposit())
            worker.run()
            (letter,) = worker.dead_letters

            assert letter.attempts == 3
            assert letter.reason == "failed at attempt 3: ZeroDivisionError: oh"
            assert 'raise ZeroDivisionError("oh")' in letter.detail

    def test_looking_into_a_queue_takes_nothing_away(self) -> None:
        app = App("bank")
        app.on(UserDeposited, name="record", retry=RetryPolicy(attempts=1))(lambda event: 1 / 0)

        with TestWorker(app) as worker:
            for user in ("u1", "u2", "u3"):
                worker.publish(deposit(user))
            worker.run()

            first, second = worker.dead_letters, worker.dead_letters
            assert [letter.key for letter in first] == ["u1", "u2", "u3"]
            assert first == second

    def test_a_key_can_be_parked(self) -> None:
        app = App("bank")

        @app.on(UserDeposited, retry=RetryPolicy(attempts=1, exhausted="park_key"))
        def record(event: UserDeposited) -> None:
            if event.user_id == "bad":
                raise ValueError("no")

        with TestWorker(app) as worker:
            for user in ("bad", "good", "bad"):
                worker.publish(deposit(user))
            worker.run()

            assert [letter.key for letter in worker.parked] == ["bad", "bad"]
            assert worker.dead_letters == []
            assert [type(event) for event in worker.runtime_events] == [KeyParked]

    def test_a_shard_can_be_halted(self) -> None:
        app = App("bank")
        policy = RetryPolicy(attempts=1, exhausted="halt_shard")
        app.on(UserDeposited, name="record", retry=policy)(lambda event: 1 / 0)

        with TestWorker(app) as worker:
            worker.publish(deposit("u1"))
            worker.publish(deposit("u2"))
            worker.run()

            assert len(worker.executed) <= 2
            assert worker.dead_letters == []

    def test_beside_a_halted_shard_the_others_are_worked_off(self) -> None:
        app = App("bank")
        done: dict[int, list[str]] = {0: [], 1: []}
        halted: list[int] = []

        @app.on(UserDeposited, retry=RetryPolicy(attempts=2, exhausted="halt_shard"))
        def record(event: UserDeposited, context: Context) -> None:
            if event.user_id == "bad":
                halted.append(context.shard)
                raise ValueError("no")
            if context.attempt == 1:
                raise Retry(delay=30)
            done[context.shard].append(event.user_id)

        with TestWorker(app, settings={"shards": 2}) as worker:
            worker.publish(deposit("bad"))
            for number in range(20):
                worker.publish(deposit(f"u{number}"))
            worker.run()
            other = 1 - halted[0]
            worker.publish(deposit("late"))
            worker.run()

            assert halted == [halted[0]] * 2
            assert not done[halted[0]]
            assert len(done[other]) > 5
            assert worker.dead_letters == []

    def test_an_outage_ends_with_the_first_probe_that_succeeds(self) -> None:
        app = App("bank")
        failures = iter(range(30))

        @app.on(UserDeposited, retry=RetryPolicy(attempts=1))
        def record(event: UserDeposited) -> None:
            if next(failures, None) is not None:
                raise ConnectionError("the bank is closed")

        with TestWorker(app, settings={"outage_after": 5}) as worker:
            for number in range(20):
                worker.publish(deposit(f"u{number}"))
            worker.run()

            told = [type(event) for event in worker.runtime_events]
            assert told.count(OutageBegan) == 1
            assert told.count(OutageEnded) == 1
            # Those that failed before it was known for an outage had their one attempt.
            assert len(worker.dead_letters) < 5

    def test_a_coroutine_that_takes_too_long_is_cancelled(self) -> None:
        app = App("bank")

        @app.on(UserDeposited, timeout=0.01, retry=RetryPolicy(attempts=1))
        async def record(event: UserDeposited) -> None:
            await asyncio.sleep(60)

        with TestWorker(app) as worker:
            worker.publish(deposit())
            worker.run()

            assert "TimeoutError" in worker.dead_letters[0].reason


class TestForeignPublishers:
    def app(self) -> App:
        app = App("bank")
        app.on(UserDeposited, name="record")(lambda event: None)
        return app

    def test_any_amqp_client_is_a_publisher(self) -> None:
        with TestWorker(self.app()) as worker:
            worker.publish_raw(b'{"user_id": "u1"}', name="user.deposited", id="e1", key="u1")
            worker.run()

            assert worker.executed == [("record", "e1", 1)]

    @pytest.mark.parametrize(
        ("given", "reason"),
        [
            ({"name": "user.deposited"}, "it has no id"),
            ({"id": "e1", "routing_key": "user.deposited"}, "it has no name"),
            (
                {"id": "e1", "name": "user.left", "routing_key": "user.deposited"},
                "no handler of 'bank' observes 'user.left'",
            ),
            (
                {"id": "e1", "name": "user.deposited", "content_type": "text/xml"},
                "the content type 'text/xml' is not JSON",
            ),
            ({"id": "e1", "name": "user.deposited"}, "missing required field `user_id`"),
        ],
    )
    def test_what_it_gets_wrong_is_told(self, given: dict[str, Any], reason: str) -> None:
        with TestWorker(self.app()) as worker:
            worker.publish_raw("{}", **given)
            worker.run()

            assert reason in worker.dead_letters[0].reason
            assert worker.executed == []

    def test_the_log_has_the_id_of_a_message_that_reaches_no_handler(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        with TestWorker(self.app()) as worker:
            worker.publish_raw("{", name="user.deposited", id="e7", content_type="text/xml")
            worker.run()

        assert "DeadLettered: message_id=e7 reason=" in caplog.text
        assert "name=user.deposited" in caplog.text
        assert [r.levelname for r in caplog.records if "DeadLettered" in r.getMessage()] == [
            "ERROR"
        ]

    def test_an_attempt_that_failed_is_told_once(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level("INFO")
        app = App("bank")

        @app.on("user.deposited", retry=RetryPolicy(attempts=2))
        def fail(_: dict[str, str]) -> None:
            raise ValueError("no")

        with TestWorker(app) as worker:
            worker.publish_raw("{}", name="user.deposited", id="e7", key="u1")
            worker.run()

        told = [r for r in caplog.records if "e7" in str(vars(r))]
        assert [r.levelname for r in told] == ["WARNING", "WARNING", "ERROR"]
        dead = told[-1].getMessage()
        assert dead.startswith(
            "DeadLettered: handler=fail message_id=e7 reason=failed at attempt 2"
        )
        assert dead.endswith("name=user.deposited key=u1")

    def test_a_message_can_be_put_into_any_queue(self) -> None:
        with TestWorker(self.app()) as worker:
            worker.publish_raw("[]", exchange="", routing_key="bank.g1.0", headers={"a": 1})
            worker.run()

            assert worker.dead_letters[0].headers["a"] == 1

    def test_settings_say_where_a_foreign_publisher_puts_the_id(self) -> None:
        with TestWorker(self.app(), settings={"id_from": "body:id"}) as worker:
            worker.publish_raw('{"user_id": "u1", "id": "e5"}', name="user.deposited")
            worker.run()

            assert worker.executed == [("record", "e5", 1)]


class TestIdempotency:
    """``duplicate_everything`` is the crash between an effect and its record, at every message."""

    def test_a_handler_that_adds_is_caught(self) -> None:
        app = App("bank")
        app.use(duplicate_everything)
        log: list[str] = []
        app.on(UserDeposited, name="record")(lambda event: log.append(event.event_id))

        with TestWorker(app) as worker:
            event_id = worker.publish(deposit())
            worker.run()

            assert worker.executed == [("record", event_id, 1)]
        assert log == [event_id, event_id]

    def test_a_handler_that_knows_its_event_passes(self) -> None:
        app = App("bank")
        app.use(duplicate_everything)
        recorded: set[str] = set()

        @app.on(UserDeposited)
        async def record(event: UserDeposited, ctx: Context) -> None:
            recorded.add(ctx.idempotency_key)

        with TestWorker(app) as worker:
            worker.publish(deposit())
            worker.run()

        assert len(recorded) == 1

    @pytest.mark.parametrize("is_async", [False, True])
    def test_what_both_runs_publish_has_the_same_ids(self, is_async: bool) -> None:
        app = App("bank")
        app.use(duplicate_everything)
        app.on(BalanceChanged, name="notice")(lambda event: None)

        def publish(event: UserDeposited, ctx: Context) -> None:
            ctx.publish(BalanceChanged(user_id=event.user_id))

        async def publish_async(event: UserDeposited, ctx: Context) -> None:
            publish(event, ctx)

        app.on(UserDeposited, name="record")(publish_async if is_async else publish)

        with TestWorker(app) as worker:
            worker.publish(deposit())
            worker.run()

            assert len(worker.published) == 1
            assert [name for name, *_ in worker.executed] == ["record", "notice"]
            assert worker.dead_letters == []

    def test_children_that_differ_under_one_id_are_caught_downstream(self) -> None:
        app = App("bank")
        app.use(duplicate_everything)
        app.on(UserDeposited, name="check")(lambda event: None)
        numbers = iter(range(10))

        @app.on(BalanceChanged)
        def record(event: BalanceChanged, ctx: Context) -> None:
            ctx.publish(UserDeposited(user_id="u1", amount=Decimal(next(numbers))))

        with TestWorker(app) as worker:
            worker.publish(BalanceChanged(user_id="u1"))
            worker.run()

            assert worker.dead_letters[0].reason == "its id was done before with another payload"

    def test_a_handler_that_fails_is_not_run_twice_at_once(self) -> None:
        app = App("bank")
        app.use(duplicate_everything)
        calls: list[int] = []

        @app.on(UserDeposited)
        def record(event: UserDeposited, ctx: Context) -> None:
            calls.append(ctx.attempt)
            if len(calls) == 1:
                raise ConnectionError

        with TestWorker(app) as worker:
            worker.publish(deposit())
            worker.run()

        assert calls == [1, 2, 2]


class TestDeployments:
    def test_a_deploy_in_between_executes_nothing_again(self) -> None:
        app = App("bank")
        app.on(UserDeposited, name="record")(lambda event: None)

        with TestWorker(app) as worker:
            event = deposit()
            worker.publish(event)
            worker.run()
            assert worker.drain() is Finish.DRAINED
            worker.publish(event)
            worker.publish(deposit("u2"))
            worker.run()

            assert len(worker.executed) == 2

    def test_what_waits_for_a_retry_waits_through_it(self) -> None:
        app = App("bank")

        @app.on(UserDeposited)
        def record(event: UserDeposited, ctx: Context) -> None:
            if ctx.attempt == 1:
                raise Retry(delay=60)

        with TestWorker(app) as worker:
            event_id = worker.publish(deposit())
            worker.run(advance=False)
            assert worker.drain() is Finish.DRAINED
            worker.run()

            assert worker.executed == [("record", event_id, 1), ("record", event_id, 2)]


class TestTheBlock:
    def test_the_app_is_as_it_was_afterwards(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.chdir(tmp_path)
        app = App("bank", broker="sqlite:///bank.db")
        app.use(duplicate_everything)
        app.on(UserDeposited, name="record")(lambda event: None)
        before = app.settings

        with TestWorker(app, settings={"prefetch": 7}) as worker:
            assert app.settings.broker.startswith("memory://")
            assert app.settings.prefetch == 7
            worker.publish(deposit())
            worker.run()

        assert app.settings is before
        assert app.middlewares == [duplicate_everything]
        assert list(tmp_path.iterdir()) == [], "nothing was published to its real broker"

    def test_also_where_the_test_fails(self) -> None:
        app = App("bank", broker="memory://real")

        with pytest.raises(ZeroDivisionError), TestWorker(app):
            1 / 0  # noqa: B018 - a test that fails

        assert app.settings.broker == "memory://real"

    def test_blocks_know_nothing_of_each_other(self) -> None:
        app = App("bank")
        app.on(UserDeposited, name="record")(lambda event: None)
        event = deposit()
        for _ in range(2):
            with TestWorker(app) as worker:
                worker.publish(event)
                worker.run()
                assert len(worker.executed) == 1

    def test_two_services_can_be_tested_side_by_side(self) -> None:
        bank, mailer = App("bank"), App("mailer")
        bank.on(UserDeposited, name="record")(
            lambda event, ctx: ctx.publish(SendEmail(user_id=event.user_id))
        )
        mailer.on(SendEmail, name="send")(lambda command: None)

        with TestWorker(bank) as first, TestWorker(mailer) as second:
            first.publish(deposit())
            first.run()
            for command in first.events_of(SendEmail):
                second.publish(command)
            second.run()

            assert [name for name, *_ in second.executed] == ["send"]

    def test_the_environment_has_no_say(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("QWORKER_BROKER_URL", "amqp://production")
        monkeypatch.setenv("QWORKER_SHARDS", "64")

        with TestWorker(App("bank")) as worker:
            assert worker.settings.shards == 1
            assert worker.settings.broker.startswith("memory://")

    def test_a_command_to_a_service_that_is_not_there_is_taken(self) -> None:
        with TestWorker(App("bank")) as worker:
            worker.publish(SendEmail(user_id="u1"))

        with TestWorker(App("bank")) as worker, pytest.raises(Unroutable):
            worker.app.publish(SendEmail(user_id="u1"))

    def test_work_that_never_ends_is_told(self) -> None:
        app = App("bank")

        @app.on(UserDeposited)
        def record(event: UserDeposited, ctx: Context) -> None:
            ctx.publish(event)

        with TestWorker(app) as worker:
            worker.publish(deposit())
            with pytest.raises(TimeoutError, match="still has work"):
                worker.run(timeout=0.2)

    def test_real_time_can_be_had_as_well(self) -> None:
        app = App("bank")

        @app.on(UserDeposited)
        def record(event: UserDeposited, ctx: Context) -> None:
            if ctx.attempt == 1:
                raise Retry(delay=0.05)

        with TestWorker(app, clock=time.monotonic) as worker:
            begun = time.monotonic()
            worker.publish(deposit())
            worker.run()

            assert len(worker.executed) == 2
            assert time.monotonic() - begun >= 0.05

    @pytest.mark.parametrize("is_async", [False, True])
    def test_what_ends_the_test_ends_it_in_a_handler_too(self, is_async: bool) -> None:
        app = App("bank")

        def record(event: UserDeposited) -> None:
            raise KeyboardInterrupt

        async def record_async(event: UserDeposited) -> None:
            pytest.fail("not this way")

        app.on(UserDeposited, name="record")(record_async if is_async else record)
        expected = pytest.fail.Exception if is_async else KeyboardInterrupt

        with TestWorker(app) as worker:
            worker.publish(deposit())
            with pytest.raises(expected):
                worker.run()

    def test_it_starts_no_threads(self) -> None:
        app = App("bank")
        app.on(UserDeposited, name="record")(lambda event: None)
        before = threading.active_count()

        with TestWorker(app) as worker:
            worker.publish(deposit())
            worker.run()
            assert threading.active_count() == before


class TestTheClock:
    def test_it_stands_still(self) -> None:
        clock = FakeClock()

        assert clock() == clock()

    def test_it_is_moved_by_hand(self) -> None:
        clock = FakeClock(100)
        clock.advance(60)
        assert clock() == 160
        clock.advance_to(200)
        assert clock() == 200

    def test_it_never_goes_back(self) -> None:
        clock = FakeClock(100)
        clock.advance_to(50)

        assert clock() == 100
        with pytest.raises(ValueError, match="zero or more"):
            clock.advance(-1)


PLUGIN_TEST = """
from worker import App

app = App("bank")
app.on("user.deposited", name="record")(lambda event: None)

def test_one(qworker_worker):
    worker = qworker_worker(app, settings={"shards": 2})
    other = qworker_worker(App("other"))
    worker.publish_raw("{}", name="user.deposited", id="1")
    worker.run()
    assert worker.executed == [("record", "1", 1)]
    assert app.settings.broker.startswith("memory://")

def test_two():
    assert not app.settings.broker.startswith("memory://")
"""


def test_pytest_finds_the_fixture_and_ends_the_worker_with_the_test(tmp_path: Path) -> None:
    (tmp_path / "test_app.py").write_text(PLUGIN_TEST)
    plugin = ["-p", "no:qworker", "-p", "worker.testing.plugin", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *plugin, str(tmp_path)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
