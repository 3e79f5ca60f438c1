"""Claims, records, settlement and lanes, broken one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any
from unittest.mock import patch

from simulation.breaking import mutation
from worker.consumer import Consumer
from worker.dedup import memory
from worker.dedup.base import Answer, Claim, Complete, Held, Verdict, judge_claim
from worker.detour import Detour
from worker.dialogue import Dialogue
from worker.fate import Fate
from worker.holds import Holds
from worker.settlement import Acks, Settlement
from worker.sharding.lanes import Lanes

# -- claims and records


@mutation(
    "cuts",
    23,
    off="deadline of a claim",
    sees=("begins when its claim is over", "begins without its claim", "begins while it runs"),
)
def claims_are_trusted_past_their_end() -> Iterator[None]:
    with patch("worker.dialogue._TRUST_SHARE", 3.0):
        yield


@mutation("sleepers", 82, off="compare-and-set on complete", sees="a stale owner changed a record")
def completes_whoever_owns_it() -> Iterator[None]:
    def complete(self: memory.Records, entry: Complete, now: float, options: Any) -> Answer:
        self.held.pop(entry.record, None)
        self.done[entry.record] = memory.Finished(entry.fingerprint, now + options.retention)
        return Answer.KEPT

    with patch.object(memory.Records, "_complete", complete):
        yield


@mutation("short", off="record of what is done", sees="a second effect")
def every_claim_is_fresh() -> Iterator[None]:
    def claim(
        self: memory.Records, entry: Claim, dead: object, now: float, options: Any
    ) -> Verdict:
        self.done.pop(entry.record, None)
        self.held[entry.record] = Held(
            entry.token, now + options.claim_ttl, options.claim_ttl, 1, 0
        )
        return Verdict(Answer.FRESH, 1)

    with patch.object(memory.Records, "_claim", claim):
        yield


def _instead_of_busy(answer: Answer) -> Callable[..., Verdict]:
    judge = judge_claim

    def judge_otherwise(*given: Any) -> Verdict:
        verdict = judge(*given)
        if verdict.answer is not Answer.BUSY:
            return verdict
        return Verdict(answer, verdict.attempts + 1, verdict.crashes)

    return judge_otherwise


@mutation("breaks", off="hold on busy", sees=("settled before it is recorded", "lost"))
def busy_is_taken_for_a_duplicate() -> Iterator[None]:
    with patch("worker.dedup.memory.judge_claim", _instead_of_busy(Answer.DUPLICATE)):
        yield


@mutation(
    "processes",
    off="hold on busy",
    sees=("begins without its claim", "begins while it runs", "a second effect"),
)
def busy_is_taken_for_fresh() -> Iterator[None]:
    with patch("worker.dedup.memory.judge_claim", _instead_of_busy(Answer.FRESH)):
        yield


@mutation("breaks", 50, off="renewal of claims", sees=("begins while it runs", "a second effect"))
def claims_are_not_renewed() -> Iterator[None]:
    with patch.object(Dialogue, "_renewals", lambda *_: []):
        yield


# -- settlement


@mutation("short", off="order of done and ack", sees=("settled before it is recorded", "lost"))
def acknowledged_before_it_is_recorded() -> Iterator[None]:
    complete = Dialogue.complete
    settled = Consumer._settled

    def settle_first(self: Consumer, delivery: Any) -> None:
        if delivery.open_tasks > 0:
            settled(self, delivery)

    def open_(self: Consumer, *given: Any, **named: Any) -> bool:
        up = open_before(self, *given, **named)
        dialogue = self._dialogue

        def complete_later(task: Any) -> None:
            self._settled(task.delivery)
            complete(dialogue, task)

        dialogue.complete = complete_later  # type: ignore[method-assign]  # while it is broken
        return up

    open_before = Consumer.open
    with patch.object(Consumer, "open", open_), patch.object(Consumer, "_settled", settle_first):
        yield


@mutation("short", off="order of done and ack", sees="lost")
def acknowledged_when_it_is_delivered() -> Iterator[None]:
    def deliver(self: Settlement, tag: int) -> None:
        self._highest = tag
        self._finished.add(tag)

    with patch.object(Settlement, "deliver", deliver):
        yield


@mutation("short", 34, off="contiguous ack", sees="lost")
def acknowledged_beyond_a_gap() -> Iterator[None]:
    def take(self: Settlement, _slack: int = 0) -> Acks:
        if not self._finished:
            return Acks(None, [])
        last = max(self._finished)
        self._finished.clear()
        if last <= self._upto:
            return Acks(None, [])
        self._upto = last
        return Acks(last, [])

    finish = Settlement.finish

    def finish_once(self: Settlement, tag: int) -> None:
        if tag > self._upto:
            finish(self, tag)

    with (
        patch.object(Settlement, "take", take),
        patch.object(Settlement, "finish", finish_once),
    ):
        yield


@mutation("short", off="order of confirm and done", sees="lost")
def a_dead_letter_is_recorded_before_it_is_confirmed() -> Iterator[None]:
    def insist(self: Detour, message: Any, channel: Any, done: Any, *_: Any) -> None:
        done()
        self._later(0.3, lambda: self._link.send(message, lambda _error: None, again=False))

    with patch.object(Detour, "_insist", insist):
        yield


# -- order


@mutation("processes", off="lanes", sees=("out of order", "two handlers of a key at once"))
def a_lane_runs_twice_at_once() -> Iterator[None]:
    take = Lanes.take

    def take_too_much(self: Lanes[Any], room: int, longest: int) -> list[Any]:
        runs = take(self, room, longest)
        for run in runs:
            run.lane.running = False
            if run.lane.tasks and not run.lane.queued:
                self._queue(run.lane)
        return runs

    with patch.object(Lanes, "take", take_too_much):
        yield


@mutation("short", off="attempts of a message", sees="taken for poison")
def what_fails_is_given_up_at_once() -> Iterator[None]:
    failed = Fate._failed

    def fail(self: Fate, task: Any, last: Any, _delay: object, lane: Any) -> bool:
        return failed(self, task, last, None, lane)

    with patch.object(Fate, "_failed", fail):
        yield


@mutation("short", 2, off="hold of a retry", sees="out of order")
def a_retry_does_not_hold_its_lane() -> Iterator[None]:
    """What failed goes to the end of its lane, and nothing behind it waits for it.

    When it is its turn again the store still says when it is due: it waits for that, as always.
    """
    late: list[Any] = []

    def fail(self: Fate, *given: Any) -> bool:
        with patch.object(Holds, "for_retry", lambda _, task, *__: late.append(task)):
            return failed(self, *given)

    def give_back(self: Lanes[Any], lane: Any, unfinished: Iterable[Any] = ()) -> None:
        rest = [*unfinished]
        finish(self, lane, [task for task in rest if task not in late])
        for task in rest:
            if task in late:
                late.remove(task)
                self.add(task, lane.place[1] if lane.place else None, lane.shard)

    failed, finish = Fate._failed, Lanes.finish
    with patch.object(Fate, "_failed", fail), patch.object(Lanes, "finish", give_back):
        yield
