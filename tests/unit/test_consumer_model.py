"""Random days of a service: whatever fails, each message ends once, and each key in order.

The real consumer runs on the broker in memory; handlers fail, ask for retries and reject by a
plan, the dedup store goes away before and after it heard, connections are lost, and the service is
deployed in between. In the end (P1) every message was handled or is a dead letter, (P2) none was
handled twice, (P3) each key was handled in publishing order.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import orjson
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from worker import App, Context, Reject, Retry, RetryPolicy
from worker.dedup.base import Answers, Batch
from worker.errors import BrokerUnreachable, DedupUnavailable
from worker.testing import TestWorker

ATTEMPTS = 3
HANDLERS = ("plain", "coroutine")
plans = st.lists(st.sampled_from(["fail", "retry", "reject"]), max_size=ATTEMPTS)


@dataclass(frozen=True)
class Post:
    """A message of the day, and what its handlers will make of it, attempt by attempt."""

    number: int
    key: str | None
    plan: dict[str, list[str]]
    copies: int

    @property
    def id(self) -> str:
        return f"m{self.number}"

    def body(self) -> bytes:
        return orjson.dumps({"number": self.number, "plan": self.plan})

    def succeeds_at(self, handler: str) -> bool:
        steps = self.plan[handler]
        return "reject" not in steps and len(steps) < ATTEMPTS


@st.composite
def days(draw: st.DrawFn) -> list[Post]:
    keys = draw(st.lists(st.sampled_from(["a", "b", None]), min_size=1, max_size=12))
    return [
        Post(number, key, {name: draw(plans) for name in HANDLERS}, draw(st.integers(1, 2)))
        for number, key in enumerate(keys)
    ]


class Service:
    """An app that follows the plans and keeps a ledger of its effects."""

    def __init__(self) -> None:
        self.effects: list[tuple[str, int]] = []
        self.app = App("bank")
        self.running: set[str] = set()
        #: What every handler needs is away.
        self.is_out = False
        policy = RetryPolicy(attempts=ATTEMPTS)
        self.app.on("post", name="plain", retry=policy)(self.plain)
        self.app.on("post", name="coroutine", retry=policy)(self.coroutine)

    def plain(self, event: dict[str, Any], ctx: Context) -> None:
        self.follow("plain", event, ctx)

    async def coroutine(self, event: dict[str, Any], ctx: Context) -> None:
        lane = ctx.key or ctx.message_id
        assert lane not in self.running, "two handlers of one key at a time"
        self.running.add(lane)
        await asyncio.sleep(0)
        self.running.remove(lane)
        self.follow("coroutine", event, ctx)

    def follow(self, handler: str, event: dict[str, Any], ctx: Context) -> None:
        if self.is_out:
            raise ConnectionError("nobody can do anything")
        step = dict(enumerate(event["plan"][handler], 1)).get(ctx.attempt, "succeed")
        match step:
            case "fail":
                raise ValueError("by plan")
            case "retry":
                raise Retry(delay=1.0)
            case "reject":
                raise Reject("by plan")
        self.effects.append((handler, event["number"]))

    def check(
        self,
        posts: list[Post],
        worker: TestWorker,
        *,
        outages: bool = False,
        uncertain: frozenset[tuple[str, int]] = frozenset(),
    ) -> None:
        """Check the promises. What is ``uncertain`` may have happened more than once."""
        dead = [(letter.handler, letter.payload["number"]) for letter in worker.dead_letters]
        ends = Counter([*self.effects, *dead])
        wanted = {(handler, post.number) for post in posts for handler in HANDLERS}
        assert set(ends) == wanted, "lost, or from nowhere"
        twice = {end for end, number in ends.items() if number > 1}
        assert twice <= uncertain, "ended twice"
        assert worker.parked == []
        if outages:  # some used up their attempts before it was known for one
            assert all(letter.attempts >= ATTEMPTS for letter in worker.dead_letters)
        else:
            able = {(h, post.number) for post in posts for h in HANDLERS if post.succeeds_at(h)}
            assert able <= set(self.effects), "given up too early"
        order = defaultdict(list)
        keys = {post.number: post.key for post in posts}
        for handler, number in self.effects:
            if keys[number] is not None:
                order[handler, keys[number]].append(number)
        for numbers in order.values():
            first_times = list(dict.fromkeys(numbers))
            assert first_times == sorted(first_times), "out of order"


def publish(worker: TestWorker, posts: list[Post]) -> Iterator[None]:
    """Publish one message after the other, pausing after each."""
    for post in posts:
        for _ in range(post.copies):
            worker.publish_raw(post.body(), name="post", id=post.id, key=post.key)
        yield


any_day = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@any_day
@given(
    posts=days(),
    shards=st.integers(1, 3),
    concurrency=st.integers(1, 4),
    pauses=st.lists(st.booleans(), min_size=12, max_size=12),
)
def test_a_day_without_faults(
    posts: list[Post], shards: int, concurrency: int, pauses: list[bool]
) -> None:
    service = Service()
    with TestWorker(
        service.app,
        settings={"shards": shards, "concurrency": concurrency, "outage_after": 1000},
    ) as worker:
        for _, pause in zip(publish(worker, posts), pauses, strict=False):
            if pause:
                worker.run(advance=False)
        worker.run()

        service.check(posts, worker)
        attempts = Counter((handler, id_) for handler, id_, _ in worker.executed)
        for post in posts:
            for handler in HANDLERS:
                steps = post.plan[handler]
                stop = steps.index("reject") + 1 if "reject" in steps else len(steps) + 1
                assert attempts[handler, post.id] == min(stop, ATTEMPTS)


@any_day
@given(posts=days(), seed=st.integers(0, 2**32))
def test_a_day_of_faults(posts: list[Post], seed: int) -> None:
    service, rng = Service(), Random(seed)
    with TestWorker(service.app, settings={"outage_after": 1000}) as worker:
        store_apply = worker.store.apply
        faults = {"store": 0.0}

        def unreliable(batch: Batch) -> Answers:
            if rng.random() < faults["store"]:
                raise DedupUnavailable("before it heard")
            answers = store_apply(batch)
            if rng.random() < faults["store"]:
                raise DedupUnavailable("after it heard")
            return answers

        worker.store.apply = unreliable  # type: ignore[method-assign] # for the length of a test
        for _ in publish(worker, posts):
            faults["store"] = rng.choice([0.0, 0.3])
            some_ticks(worker, rng)
            match rng.randint(0, 9):
                case 0:
                    worker.drain()
                case 1:
                    consumer_of(worker)._link_lost(BrokerUnreachable("cut"))
        faults["store"] = 0.0
        worker.run()

        service.check(posts, worker)
        runs = Counter((handler, id_) for handler, id_, _ in worker.executed)
        assert max(runs.values()) <= ATTEMPTS


@any_day
@given(posts=days(), seed=st.integers(0, 2**32), outage_after=st.integers(2, 5))
def test_a_day_with_outages(posts: list[Post], seed: int, outage_after: int) -> None:
    posts = [replace(post, plan={name: [] for name in HANDLERS}) for post in posts]
    service, rng = Service(), Random(seed)
    with TestWorker(service.app, settings={"outage_after": outage_after}) as worker:
        for _ in publish(worker, posts):
            service.is_out = rng.random() < 0.6
            some_ticks(worker, rng)
            if rng.random() < 0.1:
                consumer_of(worker)._link_lost(BrokerUnreachable("cut"))
        service.is_out = False
        worker.run()

        service.check(posts, worker, outages=True)


@any_day
@given(posts=days(), seed=st.integers(0, 2**32), outage_after=st.integers(2, 5))
def test_a_day_of_failures_that_look_like_an_outage(
    posts: list[Post], seed: int, outage_after: int
) -> None:
    """What would succeed at its last attempt does, however many fail before."""
    posts = [
        replace(
            post, plan={name: ["fail"] * (len(post.plan[name]) % ATTEMPTS) for name in HANDLERS}
        )
        for post in posts
    ]
    service, rng = Service(), Random(seed)
    with TestWorker(service.app, settings={"outage_after": outage_after}) as worker:
        for _ in publish(worker, posts):
            some_ticks(worker, rng)
            match rng.randint(0, 9):
                case 0:
                    worker.drain()
                case 1:
                    consumer_of(worker)._link_lost(BrokerUnreachable("cut"))
        worker.run()

        service.check(posts, worker)


@any_day
@given(posts=days(), seed=st.integers(0, 2**32))
def test_a_day_of_kills(posts: list[Post], seed: int) -> None:
    """P2 at its limit: only what was under way when a process was killed may happen again."""
    service, rng = Service(), Random(seed)
    uncertain: set[tuple[str, int]] = set()
    with TestWorker(
        service.app, settings={"outage_after": 1000, "crash_limit": 100, "concurrency": 3}
    ) as worker:
        for _ in publish(worker, posts):
            some_ticks(worker, rng)
            if rng.random() < 0.3:
                uncertain |= kill(worker)
        worker.run()

        service.check(posts, worker, uncertain=frozenset(uncertain))


def kill(worker: TestWorker) -> set[tuple[str, int]]:
    """End the process of ``worker`` as kill -9 does; return what was under way."""
    consumer = consumer_of(worker)
    owned = consumer._dialogue.owned  # what it has claimed and not recorded
    worker._close()  # nothing is given back, nothing recorded
    return {(task.handler_name, int(task.message.id[1:])) for task in owned}


def consumer_of(worker: TestWorker) -> Any:
    return worker._consumer or worker._open()  # to go tick by tick


def some_ticks(worker: TestWorker, rng: Random) -> None:
    for _ in range(rng.randint(0, 6)):
        consumer_of(worker).tick(0)
        worker.clock.advance(rng.choice([0, 0, 0.05, 1.5]))
