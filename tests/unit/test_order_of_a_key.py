"""A key keeps its order where parking, suspects, replays and retries meet."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import orjson
import pytest

from worker import App, Context, Event, Reject, RetryPolicy
from worker.codec import Codec
from worker.deadletters import Box
from worker.dedup.base import Batch, Claim, fingerprint, record_ids
from worker.ending import Finish
from worker.payload import to_json
from worker.replay import Replay, Unparked
from worker.testing import TestWorker
from worker.topology import dead_letter_queue


class Step(Event, name="step", key="line"):
    """One of a sequence."""

    line: str
    number: int = 0


class Service:
    """An app that parks a key at its first failure; number 0 of line K fails until it is mended."""

    def __init__(self, **policy: Any) -> None:
        self.app = App("bank")
        self.mended = False
        self.done: list[tuple[str, int]] = []
        self.meanwhile: Callable[[], None] = lambda: None
        retry = RetryPolicy(**{"attempts": 1, "exhausted": "park_key", **policy})
        self.app.on(Step, name="work", retry=retry)(self.work)

    def work(self, event: Step) -> None:
        self.meanwhile()
        if (event.line, event.number) == ("K", 0) and not self.mended:
            raise ValueError("no")
        self.done.append((event.line, event.number))


def publish(worker: TestWorker, line: str, *numbers: int) -> None:
    for number in numbers:
        worker.publish(Step(line=line, number=number))


def parked(worker: TestWorker) -> list[int]:
    """Return the numbers of what is parked, in the order of their return."""
    letters = sorted(worker.parked, key=lambda letter: str(letter.headers["qw-parked-place"]))
    return [orjson.loads(letter.body)["number"] for letter in letters]


def test_what_arrives_while_its_key_is_being_parked_is_parked_behind() -> None:
    service = Service()
    with TestWorker(service.app, settings={"concurrency": 1, "prefetch": 10}) as worker:
        publish(worker, "K", 0, 1, 2)
        for number in range(7):
            publish(worker, f"other {number}", 1)
        publish(worker, "K", 3, 4)
        for number in range(7):
            publish(worker, f"another {number}", 1)
        worker.run()

        assert parked(worker) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("mended", [False, True])
def test_a_restart_in_the_middle_of_a_replay_lets_nothing_overtake(*, mended: bool) -> None:
    """The process that sees the rest does not know what became of the first."""
    service = Service()
    with TestWorker(service.app, settings={"concurrency": 1}) as worker:
        publish(worker, "K", 0, 1, 2)
        worker.run()
        assert parked(worker) == [0, 1, 2]

        service.mended = mended
        consumer: Any = worker._consumer
        service.meanwhile = lambda: consumer.drain(worker.clock() + 20)  # while number 0 runs
        with Replay("bank", worker.settings, worker.store) as replay:
            replay._move("K", ["replay-1"], Unparked())  # without waiting for its end
            while not consumer._executor.draining:
                consumer.tick(0)
            assert worker.drain() is Finish.DRAINED
            service.meanwhile = lambda: None
            worker.run()
            assert service.done == ([("K", 0)] if mended else [])
            assert parked(worker) == ([1, 2] if mended else [0, 1, 2])

        service.mended = True
        with Replay("bank", worker.settings, worker.store) as replay:
            replay._move("K", ["replay-2"], Unparked())
            worker.run()
        assert service.done == [("K", 0), ("K", 1), ("K", 2)]


def test_a_suspect_does_not_overtake_what_waits_before_it() -> None:
    app = App("bank")
    log: list[tuple[int, str]] = []

    @app.on(Step, name="work", retry=RetryPolicy(attempts=9, first_wait=0.02, wait="fixed"))
    def work(event: Step, context: Context) -> None:
        if event.line == "K":
            if event.number == 0 and context.attempt < 5:
                log.append((0, "failed"))
                raise ValueError("later")
            log.append((event.number, "done"))

    settings = {"concurrency": 1, "prefetch": 300}
    with TestWorker(app, clock=time.monotonic, settings=settings) as worker:
        consumer: Any = worker._consumer
        consumer._dispatcher._rate = 1e6  # quick handlers: runs are long
        consumer._dispatcher._seconds = 0.0
        consumer._dispatcher.measure = lambda _now: None  # and stay so
        events = [Step(line="K", number=number) for number in range(3)]
        record, dead = record_ids("bank.work"), b"deadlife"
        for number, event in enumerate(events):
            worker.publish(event)
            if number < 2:  # a process that died had begun with these
                body = to_json({"line": event.line, "number": event.number})
                token = dead + bytes([0, 0, 0, number])
                claim = Claim(record(event.event_id), token, fingerprint(body))
                worker.store.apply(Batch(claims=[claim]))
        consumer.bury([dead])
        worker.run()

    assert log == [(0, "failed")] * 3 + [(0, "done"), (1, "done"), (2, "done")]


@pytest.mark.parametrize("fault", ["restart", "link"])
def test_a_retry_waits_its_time_whatever_happens_to_connections_and_processes(fault: str) -> None:
    service = Service(attempts=4, wait="fixed", first_wait=600, max_wait=600, jitter=0)
    with TestWorker(service.app) as worker:
        publish(worker, "K", 0, 1)
        for _ in range(4):
            worker.run(advance=False)
            if fault == "restart":
                worker.drain()
            else:
                consumer: Any = worker._consumer
                consumer._link.drop(ConnectionError("cut"), worker.clock())
                consumer._dispatcher.forget()
                worker.clock.advance(6)
        worker.run(advance=False)
        assert len(worker.executed) == 1

        service.mended = True
        begun = worker.clock()
        worker.run()
        assert 500 < worker.clock() - begun <= 600
        assert service.done == [("K", 0), ("K", 1)]


def test_a_replayed_dead_letter_runs_at_its_handler_alone_however_late() -> None:
    app = App("bank")
    done: list[str] = []
    mended: list[bool] = []

    @app.on(Step)
    def charge(event: Step) -> None:
        done.append("charge")

    @app.on(Step)
    def mail(event: Step) -> None:
        if not mended:
            raise Reject("no")
        done.append("mail")

    with TestWorker(app) as worker:
        publish(worker, "K", 0)
        worker.run()
        mended.append(True)
        worker.clock.advance(2 * worker.settings.retention)  # 'charge' is not remembered any more
        codec = Codec.of("bank", worker.settings)
        with (
            Replay("bank", worker.settings, worker.store) as replay,
            Box(dead_letter_queue("bank"), codec, worker.settings) as box,
        ):
            assert replay.letters(box, box.read()).returned == 1
        worker.run()

    assert done == ["charge", "mail"]


class Pair:
    """Two handlers of one event: ``slow`` is as told; ``quick`` parks the key at number 3."""

    def __init__(self, slow: Callable[[Step, Context], None], **slow_policy: Any) -> None:
        self.app = App("bank")
        self.mended = False
        self.slow = slow
        self.done: dict[str, list[int]] = {"slow": [], "quick": []}
        self.app.on(Step, name="slow", retry=RetryPolicy(**slow_policy))(self.handle_slow)
        retry = RetryPolicy(attempts=1, exhausted="park_key")
        self.app.on(Step, name="quick", retry=retry)(self.handle_quick)

    def handle_slow(self, event: Step, context: Context) -> None:
        if not self.mended:
            self.slow(event, context)
        if event.line == "K":
            self.done["slow"].append(event.number)

    def handle_quick(self, event: Step) -> None:
        if (event.line, event.number) == ("K", 3) and not self.mended:
            raise ValueError("no")
        if event.line == "K":
            self.done["quick"].append(event.number)


def fail_first(event: Step, context: Context) -> None:
    """Fail at number 0, which is tried again in ten minutes."""
    if event.number == 0:
        raise ValueError("later")


LATER = {"attempts": 4, "wait": "fixed", "first_wait": 600, "max_wait": 600, "jitter": 0}


def return_all(worker: TestWorker, *, replay_id: str = "replay") -> None:
    """Do what a replay of line K does, but that nothing waits for its end."""
    codec = Codec.of("bank", worker.settings)
    with Replay("bank", worker.settings, worker.store) as replay:
        upto = worker.store.parked("bank")["K"]
        letters = replay._move("K", [replay_id], Unparked())
        replay._mark("K", letters, upto)
    worker.run()
    with Box("bank.parked", codec, worker.settings) as box:
        assert box.depth == 0


@pytest.mark.parametrize("how", ["at once", "one by one", "others first", "restart", "drain"])
def test_a_parked_key_takes_along_what_waits_at_another_handler(how: str) -> None:
    service = Pair(fail_first, **LATER)
    with TestWorker(service.app, settings={"concurrency": 2}) as worker:
        if how == "one by one":
            for number in range(6):
                publish(worker, "K", number)
                worker.run(advance=False)
        else:
            publish(worker, "K", *range(6))
            if how == "others first":
                publish(worker, "another", 0, 1)
        if how == "drain":
            worker.drain()
        worker.run(advance=False)
        if how == "restart":
            worker.drain()
            worker.run(advance=False)
        assert service.done["slow"][:1] != [3], "it waits for number 0"
        assert parked(worker) == [0, 1, 2, 3, 4, 5]
        assert [letter.reason[:20] for letter in worker.parked if "failed" in letter.reason] == [
            "failed at attempt 1:"
        ]

        publish(worker, "K", 6)
        worker.run(advance=False)
        assert parked(worker) == [0, 1, 2, 3, 4, 5, 6]

        service.mended = True
        return_all(worker)
        assert worker.store.parked("bank").get("K") is None
        for done in service.done.values():
            assert [n for n in done if done.count(n) == 1] == [0, 1, 2, 3, 4, 5, 6], service.done


def test_nothing_is_parked_before_the_children_of_what_came_before_are_confirmed() -> None:
    """A crash in between would have the parent come again behind it."""

    class Child(Event, name="child"):
        """One."""

    def with_a_child(event: Step, context: Context) -> None:
        if event.number == 0:
            context.publish(Child())

    service = Pair(with_a_child)
    service.app.on(Child, name="children")(lambda event: None)
    with TestWorker(service.app, settings={"concurrency": 2}) as worker:
        consumer: Any = worker._consumer
        detour, send = consumer._detour, consumer._detour._send_child
        kept: list[Any] = []
        detour._send_child = lambda *args: kept.append(args)
        publish(worker, "K", *range(6))
        for _ in range(200):
            consumer.tick(0)
        assert service.done["slow"] == [0]
        assert service.done["quick"] == [0, 1, 2]
        assert parked(worker) == []

        detour._send_child = send
        for each in kept:
            send(*each)
        worker.run()
        assert parked(worker) == [1, 2, 3, 4, 5]

        service.mended = True
        return_all(worker)
        assert service.done == {"slow": [0, 1, 2, 3, 4, 5], "quick": [0, 1, 2, 3, 4, 5]}


def test_a_dead_letter_that_was_parked_on_its_way_returns_to_its_handler_alone() -> None:
    app = App("bank")
    done: list[str] = []
    mended: list[bool] = []

    @app.on(Step)
    def charge(event: Step) -> None:
        done.append(f"charge {event.number}")

    @app.on(Step, retry=RetryPolicy(attempts=1, exhausted="park_key"))
    def mail(event: Step) -> None:
        if event.number == 0 and not mended:
            raise Reject("no")
        if event.number == 1 and not mended:
            raise ValueError("no")
        done.append(f"mail {event.number}")

    with TestWorker(app) as worker:
        publish(worker, "K", 0, 1)
        worker.run()
        codec = Codec.of("bank", worker.settings)
        with (
            Replay("bank", worker.settings, worker.store) as replay,
            Box(dead_letter_queue("bank"), codec, worker.settings) as box,
        ):
            assert replay.letters(box, box.read()).returned == 1
        worker.run()
        assert len(worker.parked) == 2
        mended.append(True)
        worker.clock.advance(2 * worker.settings.retention)
        for replay_id in ("one", "two"):  # parked a second time, it is known still
            with Replay("bank", worker.settings, worker.store) as replay:
                replay._move("K", [replay_id], Unparked())
            if replay_id == "one":
                worker.drain()
        worker.run()

    assert [each for each in done if each.endswith("0")] == ["charge 0", "mail 0"]
