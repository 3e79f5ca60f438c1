"""From a claimed task to its outcome: whatever a handler does comes back as a value."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
from tenacity import RetryCallState

from worker import App, Context, Event, Message, Reject, Retry, RetryPolicy
from worker.codec import Codec
from worker.config import Settings
from worker.executor import Executor
from worker.logs import TextFormatter
from worker.outcome import ABANDONED, DONE, DeadLetter, Done, Outcome, RetryLater
from worker.task import Task
from worker.testing import FakeClock

CODEC = Codec.of("bank", Settings())


class Deposited(Event, name="user.deposited", key="user_id"):
    user_id: str


class Bench:
    """One handler, and a clock, to run tasks with."""

    def __init__(self, target: Callable[..., Any], **options: Any) -> None:
        self.app = App("bank")
        self.app.on(Deposited, name="record", **options)(target)
        self.clock = FakeClock()
        self.executor = Executor(self.app, CODEC, "the state", Random(0), self.clock)
        self.executor.fences = {3: 17}

    def task(self, body: bytes = b'{"user_id": "u1"}', attempt: int = 1) -> Task:
        message = Message(
            "id-1", "user.deposited", "u1", body, {}, {"correlation_id": "story"}, shard=3
        )
        delivery: Any = SimpleNamespace(message=message, fingerprint=b"")
        task = Task(delivery, message, self.app.handlers["record"])
        task.attempt = attempt
        task.trusted_until = self.clock() + 9
        return task

    def run(self, task: Task | None = None) -> Outcome:
        task = task or self.task()
        if task.is_async:
            return asyncio.run(self.executor.run_async(task))
        return self.executor.run(task)


def raising(error: BaseException, *, is_async: bool) -> Callable[..., Any]:
    """Return a handler that raises ``error``."""

    def handler(event: Deposited) -> None:
        raise error

    async def handler_async(event: Deposited) -> None:
        raise error

    return handler_async if is_async else handler


both = pytest.mark.parametrize("is_async", [False, True], ids=["plain", "coroutine"])


class Mute(Exception):
    """An exception whose text cannot be had."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


class TestOutcomes:
    def test_a_handler_that_returns_is_done(self) -> None:
        assert Bench(lambda event: None).run() is DONE

    def test_what_it_returned_means_nothing(self) -> None:
        assert Bench(lambda event: 42).run() is DONE

    def test_what_it_published_comes_along_under_ids_that_a_second_run_repeats(self) -> None:
        def handler(event: Deposited, ctx: Context) -> None:
            ctx.publish(Deposited(user_id="u2"))

        bench = Bench(handler)
        first, second = bench.run(), bench.run()

        assert isinstance(first, Done)
        assert isinstance(second, Done)
        assert [c.message_id for c in first.children] == [c.message_id for c in second.children]
        assert first.children[0].properties["correlation_id"] == "story"
        assert first.children[0].headers["qw-causation-id"] == "id-1"

    @both
    def test_an_error_is_tried_again_later(self, is_async: bool) -> None:
        policy = RetryPolicy(jitter=0)
        bench = Bench(raising(ValueError("no"), is_async=is_async), retry=policy)

        assert bench.run() == RetryLater(1.0, "ValueError: no")

    @both
    def test_the_last_attempt_leaves_a_dead_letter_with_its_traceback(self, is_async: bool) -> None:
        bench = Bench(raising(ValueError("no"), is_async=is_async), retry=RetryPolicy(attempts=3))
        outcome = bench.run(bench.task(attempt=3))

        assert isinstance(outcome, DeadLetter)
        assert outcome.exhausted
        assert outcome.reason == "failed at attempt 3: ValueError: no"
        assert "raise error" in outcome.detail

    @both
    def test_a_rejection_is_a_dead_letter_at_once(self, is_async: bool) -> None:
        outcome = Bench(raising(Reject("closed"), is_async=is_async)).run()

        assert outcome == DeadLetter("rejected by the handler: closed")

    @both
    def test_a_handler_says_itself_when_to_try_again(self, is_async: bool) -> None:
        outcome = Bench(raising(Retry("later", delay=77), is_async=is_async)).run()

        assert outcome == RetryLater(77, "Retry: later", asked=True)

    def test_a_payload_that_does_not_fit_never_reaches_the_handler(self) -> None:
        bench = Bench(lambda event: pytest.fail("it ran"))
        outcome = bench.run(bench.task(b"{}"))

        assert isinstance(outcome, DeadLetter)
        assert not outcome.exhausted
        assert "`user_id`" in outcome.reason

    @both
    @pytest.mark.parametrize(
        "error",
        [SystemExit(3), GeneratorExit(), Mute(), BaseExceptionGroup("many", [SystemExit()])],
        ids=lambda error: type(error).__name__,
    )
    def test_whatever_it_raises_comes_back_as_a_value(
        self, error: BaseException, is_async: bool
    ) -> None:
        assert isinstance(Bench(raising(error, is_async=is_async)).run(), RetryLater | DeadLetter)

    def test_a_policy_that_fails_itself_makes_a_dead_letter(self) -> None:
        def wait(state: RetryCallState) -> float:
            if state.outcome is not None and isinstance(state.outcome.exception(), ValueError):
                raise RuntimeError("no wait for this one")
            return 1.0

        policy = RetryPolicy(wait=wait)  # type: ignore[arg-type] # as good as tenacity's
        outcome = Bench(raising(ValueError("no"), is_async=False), retry=policy).run()

        assert isinstance(outcome, DeadLetter)
        assert "ValueError" in outcome.reason
        assert "RuntimeError" in outcome.reason

    @pytest.mark.parametrize(
        ("attempt", "says"),
        [(1, "attempt 1, and is tried again in 1 s: user"), (2, "attempt 2, its last: user")],
    )
    def test_a_failed_attempt_is_one_record_with_all_of_it(
        self, caplog: pytest.LogCaptureFixture, attempt: int, says: str
    ) -> None:
        policy = RetryPolicy(attempts=2, jitter=0)
        bench = Bench(raising(ValueError("no"), is_async=False), retry=policy)
        bench.run(bench.task(attempt=attempt))

        (record,) = caplog.records
        line = TextFormatter("bank").format(record).splitlines()[0]
        assert f"bank.record failed at {says}.deposited with key 'u1'" in line
        assert line.endswith("  shard=3 message_id=id-1 handler=record")
        assert "ValueError: no" in TextFormatter().format(record)

    def test_what_a_handler_logs_keeps_its_own_facts(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        def handler(event: Deposited, context: Context) -> None:
            context.logger.warning("low", extra={"balance": 3})

        Bench(handler).run()

        assert [vars(record)["balance"] for record in caplog.records] == [3]

    def test_no_reason_is_longer_than_people_read(self) -> None:
        outcome = Bench(raising(ValueError("x" * 100_000), is_async=False)).run()

        assert isinstance(outcome, RetryLater)
        assert len(outcome.reason) == 500

    def test_a_coroutine_that_a_plain_function_returned_is_no_success(self) -> None:
        async def work() -> None: ...

        outcome = Bench(lambda event: work(), retry=RetryPolicy(attempts=1)).run()
        assert isinstance(outcome, DeadLetter)
        assert "make it 'async def'" in outcome.reason


class TestTrust:
    """A handler must not begin when its claim may be another's by now, or a drain has begun."""

    @both
    def test_a_claim_that_may_have_expired_is_not_run(self, is_async: bool) -> None:
        bench = Bench(raising(AssertionError("it ran"), is_async=is_async))
        task = bench.task()
        bench.clock.advance(10)

        assert bench.run(task) is ABANDONED
        assert task.started == 0

    @both
    def test_nothing_begins_in_a_drain(self, is_async: bool) -> None:
        bench = Bench(raising(AssertionError("it ran"), is_async=is_async))
        bench.executor.draining = True

        assert bench.run() is ABANDONED

    @both
    def test_nothing_begins_of_a_shard_that_is_given_up(self, is_async: bool) -> None:
        bench = Bench(raising(AssertionError("it ran"), is_async=is_async))
        bench.executor.fences = {2: 17}

        assert bench.run() is ABANDONED

    @both
    def test_nothing_begins_once_the_leases_may_have_run_out(self, is_async: bool) -> None:
        bench = Bench(raising(AssertionError("it ran"), is_async=is_async))
        bench.executor.trusted_until = bench.clock() + 5
        task = bench.task()

        bench.clock.advance(5.1)

        assert bench.run(task) is ABANDONED
        assert task.started == 0.0


class TestContext:
    def test_a_handler_may_know_all_about_its_message(self) -> None:
        seen: list[Context] = []
        bench = Bench(lambda event, ctx: seen.append(ctx), timeout=30)
        bench.executor.fences[3] = 17
        bench.run(bench.task(attempt=2))
        (ctx,) = seen

        assert (ctx.message_id, ctx.name, ctx.key) == ("id-1", "user.deposited", "u1")
        assert (ctx.attempt, ctx.shard, ctx.fence) == (2, 3, 17)
        assert ctx.state == "the state"
        assert ctx.idempotency_key == "bank.record:id-1"
        assert ctx.correlation_id == "story"
        assert ctx.deadline == bench.clock() + 30

    def test_a_class_is_made_once(self) -> None:
        made: list[object] = []

        class Handler:
            def __init__(self) -> None:
                made.append(self)

            def handle(self, event: Deposited) -> None:
                assert made == [self]

        bench = Bench(Handler)
        assert [bench.run(), bench.run()] == [DONE, DONE]

    def test_middleware_surrounds_the_handler(self) -> None:
        log: list[str] = []
        bench = Bench(lambda event: log.append("handler"))

        def around(context: Context, call_next: Callable[[Context], Any]) -> Any:
            log.append(f"in {context.event.user_id}")
            with contextlib.closing(SimpleNamespace(close=lambda: log.append("out"))):
                return call_next(context)

        bench.app.use(around)
        bench.executor = Executor(bench.app, CODEC, None, Random(0), bench.clock)
        bench.executor.fences = {3: 17}
        bench.run()
        assert log == ["in u1", "handler", "out"]

    @both
    @pytest.mark.parametrize("fails", [False, True])
    def test_what_comes_after_the_end_of_the_handler_is_refused(
        self, *, is_async: bool, fails: bool
    ) -> None:
        """A thread or a task that it started and did not wait for."""
        contexts: list[Context] = []

        def handler(event: Deposited, context: Context) -> None:
            context.publish(event)
            contexts.append(context)
            if fails:
                raise ValueError

        async def handler_async(event: Deposited, context: Context) -> None:
            handler(event, context)

        outcome = Bench(handler_async if is_async else handler).run()

        (context,) = contexts
        with pytest.raises(RuntimeError, match=r"bank\.record has ended: Deposited comes too"):
            context.publish(Deposited(user_id="u2"))
        with (
            pytest.raises(RuntimeError, match="has ended, and its effect is remembered no more"),
            context.one_effect("inbox.transaction"),
        ):
            pass
        assert isinstance(outcome, RetryLater if fails else Done)
        if isinstance(outcome, Done):
            assert len(outcome.children) == 1


class TestTimeLimits:
    def test_a_coroutine_is_cancelled_at_its_limit(self) -> None:
        async def handler(event: Deposited) -> None:
            await asyncio.sleep(60)

        outcome = Bench(handler, timeout=0.01).run()
        assert isinstance(outcome, RetryLater)
        assert outcome.reason == "TimeoutError: over its 0.01 s"

    def test_a_coroutine_that_cancels_itself_has_failed(self) -> None:
        async def handler(event: Deposited) -> None:
            raise asyncio.CancelledError

        assert isinstance(Bench(handler).run(), RetryLater)

    def test_so_has_one_that_somebody_else_cancels(self) -> None:
        async def handler(event: Deposited) -> None:
            current = asyncio.current_task()
            assert current is not None
            asyncio.get_running_loop().call_soon(current.cancel)
            await asyncio.sleep(60)

        async def go_on() -> Outcome:
            outcome = await bench.executor.run_async(bench.task())
            await asyncio.sleep(0)  # what is cancelled ends here
            return outcome

        bench = Bench(handler)
        assert isinstance(asyncio.run(go_on()), RetryLater)

    def test_a_loop_that_ends_leaves_the_claim_to_expire(self) -> None:
        async def handler(event: Deposited) -> None:
            await asyncio.sleep(60)

        async def end(running: Awaitable[Outcome]) -> None:
            task = asyncio.ensure_future(running)
            await asyncio.sleep(0.01)
            bench.executor.closing = True
            task.cancel()
            await task

        bench = Bench(handler)
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(end(bench.executor.run_async(bench.task())))
