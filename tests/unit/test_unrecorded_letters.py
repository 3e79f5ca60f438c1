"""A replay loses no dead letter that the dedup store has not heard of yet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from worker import App, Event, Reject
from worker.codec import Codec
from worker.deadletters import Box
from worker.dedup.base import Answers, Batch
from worker.errors import DedupUnavailable
from worker.replay import Replay, Replayed
from worker.testing import TestWorker
from worker.topology import dead_letter_queue


class Step(Event, name="step", key="line"):
    """One of a sequence."""

    line: str
    number: int = 0


class Service:
    """An app that rejects the steps of one line until it is mended."""

    def __init__(self) -> None:
        self.app = App("bank")
        self.mended = False
        self.done: list[int] = []
        self.app.on(Step, name="work")(self.work)

    def work(self, event: Step) -> None:
        if event.line == "K" and not self.mended:
            raise Reject("no")
        self.done.append(event.number)


@contextmanager
def hears_of_nothing_done(worker: TestWorker, *, answer_lost: bool = False) -> Iterator[None]:
    """Let the store be away for whoever has something done to tell it, or away as it answers."""
    store: Any = worker.store
    apply = store.apply

    def away(batch: Batch) -> Answers:
        if batch.completes:
            if answer_lost:
                apply(batch)
            raise DedupUnavailable("away")
        answers: Answers = apply(batch)
        return answers

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "apply", away)
        yield


def tick(worker: TestWorker) -> None:
    consumer: Any = worker._consumer or worker._open()
    for _ in range(20):
        consumer.tick(0)


def replay(worker: TestWorker) -> Replayed:
    codec = Codec.of("bank", worker.settings)
    with (
        Replay("bank", worker.settings, worker.store) as sender,
        Box(dead_letter_queue("bank"), codec, worker.settings) as box,
    ):
        return sender.letters(box, box.read())


def test_a_letter_that_is_not_recorded_yet_stays_until_it_is() -> None:
    service = Service()
    with TestWorker(service.app) as worker:
        worker.publish(Step(line="K"))
        with hears_of_nothing_done(worker):
            tick(worker)
            assert len(worker.dead_letters) == 1
            service.mended = True

            told = replay(worker)
            assert told.returned == 0
            ((letter, why),) = told.refused
            assert letter.reason == "rejected by the handler: no"
            assert "give the same command again" in why
        worker.clock.advance(1)
        worker.run()
        assert (service.done, len(worker.dead_letters)) == ([], 1)

        assert replay(worker).returned == 1
        worker.run()
        assert (service.done, worker.dead_letters) == ([0], [])


def test_a_letter_whose_claim_ran_out_before_it_was_recorded_stays_too() -> None:
    service = Service()
    with TestWorker(service.app) as worker:
        worker.publish(Step(line="K"))
        with hears_of_nothing_done(worker):
            tick(worker)
            service.mended = True
            worker.clock.advance(2 * worker.settings.claim_ttl)
            assert replay(worker).returned == 0
        worker.run()

        assert replay(worker).returned == 1
        worker.run()
        assert (service.done, worker.dead_letters) == ([0], [])


def test_letters_that_are_recorded_return_from_beside_one_that_is_not() -> None:
    service = Service()
    with TestWorker(service.app) as worker:
        for number in range(3):
            worker.publish(Step(line="K", number=number))
        worker.run()
        with hears_of_nothing_done(worker):
            worker.publish(Step(line="K", number=3))
            tick(worker)
            assert len(worker.dead_letters) == 4
            service.mended = True
            told = replay(worker)
            assert (told.returned, len(told.refused)) == (3, 1)
        worker.clock.advance(1)
        worker.run()

        assert service.done == [0, 1, 2]
        assert len(worker.dead_letters) == 1
        assert replay(worker).returned == 1
        worker.run()
        assert service.done == [0, 1, 2, 3]


@pytest.mark.parametrize("fails_again", [False, True])
def test_a_letter_whose_record_was_not_confirmed_to_its_worker_may_return(
    *, fails_again: bool
) -> None:
    """The worker tells the store once more what the replay has made it forget meanwhile."""
    service = Service()
    with TestWorker(service.app) as worker:
        worker.publish(Step(line="K"))
        with hears_of_nothing_done(worker, answer_lost=True):
            tick(worker)
            assert len(worker.dead_letters) == 1
            assert replay(worker).returned == 1
        service.mended = not fails_again
        worker.clock.advance(1)
        worker.run()

        assert len(service.done) + len(worker.dead_letters) == 1
        assert len(service.done) == int(not fails_again)
