"""Handlers with revisions: what comes too early waits for what is missing, as the handler says."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import permutations
from typing import Any

import orjson
import pytest

from revised import ACCEPT_LATE, WAIT, Price, Shop, counted, publish, reasons
from worker import Command, Context, RetryPolicy, Revisions
from worker.again import replay_headers
from worker.dedup.base import TOKEN_BYTES, Batch, Claim, Complete, Mark, fingerprint
from worker.replay import Replay, Unparked
from worker.testing import TestWorker


@pytest.fixture(params=[1, 16], ids=["one by one", "together"])
def settings(request: pytest.FixtureRequest) -> Mapping[str, Any]:
    return {"concurrency": request.param}


def test_a_gap_is_accepted_unless_the_handler_says_otherwise() -> None:
    shop = Shop()
    with TestWorker(shop.app) as worker:
        publish(worker, 1, 5)
        worker.run()
        assert shop.revisions() == [1, 5]


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("order", [*permutations([2, 3, 4])], ids=str)
def test_what_came_too_early_runs_in_the_order_of_revisions(
    order: tuple[int, ...], settings: Mapping[str, Any], *, at_once: bool
) -> None:
    shop = Shop(WAIT, **settings)
    with TestWorker(shop.app) as worker:
        for revision in (1, *order):
            publish(worker, revision)
            if not at_once:
                worker.run(advance=False)
        begun = worker.clock()
        worker.run(advance=False)
        assert shop.revisions() == [1, 2, 3, 4]
        assert worker.clock() == begun
        assert counted(worker)[0] == 0


def test_after_a_gap_was_closed_there_is_nothing_to_wait_for() -> None:
    shop = Shop(WAIT)
    with TestWorker(shop.app) as worker:
        publish(worker, 1, 3)
        worker.run(advance=False)
        begun = worker.clock()
        publish(worker, 2)
        worker.run()
        assert shop.revisions() == [1, 2, 3]
        assert worker.clock() == begun


def test_what_waits_for_a_revision_keeps_no_other_key_waiting_and_nothing_that_it_waits_for() -> (
    None
):
    shop = Shop(WAIT, prefetch=10)
    with TestWorker(shop.app) as worker:
        publish(worker, 1, 3)
        publish(worker, 1, 2, article="ink")
        worker.run(advance=False)
        assert shop.seen == [("pen", 1), ("ink", 1), ("ink", 2)]

        worker.clock.advance(30)
        publish(worker, 2)
        worker.run(advance=False)
        assert shop.revisions() == [1, 2, 3]


@pytest.mark.parametrize("restarts", [0, 3])
def test_the_wait_for_a_revision_ends_after_its_limit_also_through_restarts(restarts: int) -> None:
    shop = Shop(ACCEPT_LATE)
    with TestWorker(shop.app) as worker:
        publish(worker, 1, 3)
        worker.run(advance=False)
        begun = worker.clock()
        for _ in range(restarts):
            worker.clock.advance(10)
            worker.drain()
            worker.run(advance=False)
        worker.run()
        assert shop.revisions() == [1, 3]
        assert 59 < worker.clock() - begun < 62


@pytest.mark.parametrize("order", [*permutations([3, 4, 6])], ids=str)
@pytest.mark.parametrize("restart", [False, True])
def test_when_the_wait_is_over_the_lowest_revision_goes_first(
    order: tuple[int, ...], *, restart: bool
) -> None:
    shop = Shop(ACCEPT_LATE)
    with TestWorker(shop.app) as worker:
        publish(worker, 1)
        worker.run()
        for revision in order:
            publish(worker, revision)
            worker.run(advance=False)
            worker.clock.advance(2)
        if restart:
            worker.drain()
            worker.clock.advance(100)
        worker.run()
        assert shop.revisions() == [1, 3, 4, 6]


def test_what_comes_after_its_successor_was_let_go_is_superseded() -> None:
    shop = Shop(ACCEPT_LATE)
    with TestWorker(shop.app) as worker:
        publish(worker, 1, 3)
        worker.run()
        publish(worker, 2)
        worker.run()
        assert shop.revisions() == [1, 3]


def test_what_waited_in_vain_is_a_dead_letter_that_says_what_was_missing() -> None:
    shop = Shop(WAIT)
    with TestWorker(shop.app) as worker:
        publish(worker, 1, 3, 7)
        worker.run()
        assert shop.revisions() == [1]
        assert reasons(worker) == [
            (3, "its revision is 3, and 2 did not come before it in 60 s"),
            (7, "its revision is 7, and 2 to 6 did not come before it in 60 s"),
        ]
        publish(worker, 2)
        worker.run()
        assert shop.revisions() == [1, 2]


def test_a_gap_can_be_a_dead_letter_at_once() -> None:
    shop = Shop(Revisions("revision", gap="dead_letter"))
    with TestWorker(shop.app) as worker:
        publish(worker, 1, 3, 2)
        worker.run(advance=False)
        assert shop.revisions() == [1, 2]
        assert reasons(worker) == [(3, "its revision is 3, and 2 did not come before it")]


def test_a_crowd_of_those_that_wait_is_not_waited_for() -> None:
    """Held messages use up prefetch: a gap in one key would stop the shard."""
    shop = Shop(ACCEPT_LATE, prefetch=8)
    with TestWorker(shop.app) as worker:
        publish(worker, 1, *range(3, 30, 2))
        publish(worker, 1, article="ink")
        worker.run(advance=False)
        assert ("ink", 1) in shop.seen
        assert shop.revisions() == sorted(shop.revisions())
        worker.run()
        assert shop.revisions() == [1, *range(3, 30, 2)]


@pytest.mark.parametrize("prefetch", [1, 2, 3])
def test_what_waits_leaves_room_for_what_it_waits_for(prefetch: int) -> None:
    shop = Shop(WAIT, prefetch=prefetch)
    with TestWorker(shop.app) as worker:
        publish(worker, 1, 3, 4)
        publish(worker, 1, article="ink")
        worker.run(advance=False)
        assert ("ink", 1) in shop.seen


@pytest.mark.parametrize(("prefetch", "waits"), [(1, 0), (2, 1), (3, 1), (8, 4)])
def test_no_more_than_half_of_what_can_be_prefetched_waits(prefetch: int, waits: int) -> None:
    shop = Shop(WAIT, prefetch=prefetch)
    with TestWorker(shop.app) as worker:
        publish(worker, 1, *range(3, 13))
        publish(worker, 1, article="ink")
        worker.run(advance=False)
        assert ("ink", 1) in shop.seen
        crowd = f"with it {waits + 1} of {prefetch} prefetched messages of shard 0 would wait"
        assert [told.partition("; ")[2] for _, told in reasons(worker)] == [
            f"given up early, since {crowd}"
        ] * (10 - waits)
        publish(worker, 2)
        worker.run(advance=False)
        assert shop.revisions() == [1, 2, *range(3, 3 + waits)]


def test_what_came_later_waits_its_own_time() -> None:
    """One that waits in vain takes nothing along that has just come."""
    shop = Shop(WAIT)
    with TestWorker(shop.app) as worker:
        publish(worker, 1, 9)
        worker.run(advance=False)
        worker.clock.advance(58)
        publish(worker, 3)
        worker.run(advance=False)
        worker.clock.advance(4)
        worker.run(advance=False)
        assert [revision for revision, _ in reasons(worker)] == [9]
        publish(worker, 2)
        worker.run(advance=False)
        assert shop.revisions() == [1, 2, 3]


def test_what_is_below_one_that_runs_late_runs_before_it() -> None:
    shop = Shop(ACCEPT_LATE)
    with TestWorker(shop.app) as worker:
        publish(worker, 1, 9)
        worker.run(advance=False)
        worker.clock.advance(58)
        publish(worker, 3)
        worker.run(advance=False)
        worker.clock.advance(4)
        worker.run(advance=False)
        worker.clock.advance(1)
        worker.run(advance=False)
        assert shop.revisions() == [1, 3, 9]


def test_a_wait_that_is_over_for_many_costs_one_timer() -> None:
    shop = Shop(ACCEPT_LATE)
    with TestWorker(shop.app) as worker:
        publish(worker, 1, *range(3, 43, 2))
        worker.run(advance=False)
        consumer: Any = worker._consumer
        assert len(consumer._timers) == 20
        consumer.pause(["note"])
        worker.clock.advance(61)
        for _ in range(5):
            consumer.tick(0)
            worker.clock.advance(0.2)
        assert len(consumer._timers) == 1
        consumer.pause([])
        worker.run()
        assert shop.revisions() == [1, *range(3, 43, 2)]
        assert len(consumer._timers) == 0


class Parker(Shop):
    """A shop that waits for revisions, with a second handler that parks a key."""

    def __init__(self) -> None:
        super().__init__(WAIT)
        self.mended = False
        policy = RetryPolicy(attempts=1, exhausted="park_key")
        self.app.on(Price, name="park", retry=policy)(self.park)

    def park(self, event: Price) -> None:
        if event.revision == 9 and not self.mended:
            raise ValueError("no")


def test_a_parked_key_takes_along_what_waits_for_a_revision() -> None:
    shop = Parker()
    with TestWorker(shop.app) as worker:
        publish(worker, 1, 3)
        worker.run(advance=False)
        publish(worker, 9)
        worker.run(advance=False)
        assert shop.revisions() == [1]
        assert [orjson.loads(each.body)["revision"] for each in worker.parked] == [3, 9]
        consumer: Any = worker._consumer
        assert len(consumer._dispatcher.lanes) == 0
        assert consumer._link.channels[0].held == 0


def test_a_key_that_returns_is_free_while_some_of_it_waits_for_revisions() -> None:
    """What that waits for may have to be parked as long as the key is."""
    shop = Parker()
    with TestWorker(shop.app) as worker, Replay("shop", worker.settings, worker.store) as replay:
        publish(worker, 1, 3, 9)
        worker.run(advance=False)
        shop.mended = True
        upto = worker.store.parked("shop")["pen"]
        letters = replay._move("pen", ["replay"], Unparked())  # one round of key()
        replay._mark("pen", letters, upto)
        for _ in range(4):
            worker.run(advance=False)
            worker.clock.advance(0.05)
        assert "pen" not in worker.store.parked("shop")
        publish(worker, 2)
        worker.clock.advance(6)  # what comes behind the marker is withheld for a moment
        worker.run(advance=False)
        assert shop.revisions() == [1, 2, 3]


def do_elsewhere(worker: TestWorker, id_: str, body: bytes, revision: int) -> None:
    """Let another process do a message, whose claim this one had no part in."""
    handler = worker.app.handlers["note"]
    token, other = b"t" * TOKEN_BYTES, handler.record_id(id_)
    worker.store.apply(Batch(claims=[Claim(other, token, fingerprint(body))]))
    done = Batch(completes=[Complete(other, token, fingerprint(body))])
    done.marks.append(Mark(handler.place_of("pen"), revision))
    worker.store.apply(done)


@pytest.mark.parametrize("done", [2, 3])
def test_what_another_process_did_ends_the_wait_for_it(done: int) -> None:
    """It outlived its lease, say, and acknowledged nothing."""
    shop = Shop(WAIT)
    body = b'{"article": "pen", "revision": 2}'
    with TestWorker(shop.app) as worker:
        publish(worker, 1, 3, 4)
        worker.run(advance=False)
        do_elsewhere(worker, "m2", body, done)
        worker.publish_raw(body, name="price.changed", id="m2", key="pen")
        worker.run(advance=False)
        assert shop.revisions() == [1, *range(done + 1, 5)]


class Nobody(Command, name="gaps.nobody", to="a-service-that-was-never-started"):
    """A command that no queue receives."""


def test_what_is_let_go_and_is_still_too_early_waits_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its time may be over in between: nothing else would look at it."""
    shop = Shop(WAIT)
    with TestWorker(shop.app) as worker:
        monkeypatch.setattr(worker._tap, "welcome_commands", lambda: None)
        publish(worker, 1, 3)
        worker.run(advance=False)
        consumer: Any = worker._consumer

        def tell_nobody(_: Price, context: Context) -> None:
            consumer.pause(["note"])  # what is let go behind it begins later
            context.publish(Nobody())

        shop.meanwhile = tell_nobody
        publish(worker, 2)
        for _ in range(61):
            consumer.tick(0)
            worker.clock.advance(1)
        consumer.pause([])
        worker.run(advance=False)
        assert [revision for revision, _ in reasons(worker)] == [2, 3]


def replayed(worker: TestWorker, *revisions: int) -> None:
    """Publish as a replay does that lets it be done again."""
    headers = replay_headers("r1", [], again=True)
    for revision in revisions:
        worker.publish(Price(article="pen", revision=revision), headers=headers)


@pytest.mark.parametrize("revision", [WAIT, ACCEPT_LATE], ids=["dead_letter", "accept"])
def test_what_is_live_waits_its_own_time_beside_what_a_replay_does_again(
    revision: Revisions,
) -> None:
    shop = Shop(revision)
    with TestWorker(shop.app) as worker:
        replayed(worker, 1, 12)
        worker.run(advance=False)
        worker.clock.advance(40)
        publish(worker, 1, 3)
        worker.run(advance=False)
        worker.clock.advance(21)  # the wait of the twelfth is over
        worker.run(advance=False)
        publish(worker, 2)
        worker.run(advance=False)
        assert [each for each in shop.revisions() if each < 12] == [1, 1, 2, 3]
