"""One mechanism of the product broken at a time: the simulation must notice each of them.

Each is a context manager; what it breaks stays broken for as long as the block runs. A mutation
that stays green shows a trouble, or a check, that the simulation lacks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

from worker.consumer import Consumer
from worker.dedup import memory
from worker.dedup.base import Answer, Claim, Complete, Held, Verdict
from worker.detour import Detour
from worker.dialogue import Dialogue
from worker.executor import Executor
from worker.holds import Holds
from worker.leases.rules import Book, LeaseRow
from worker.link import Link
from worker.settlement import Acks, Settlement
from worker.sharding.generations import Phase, Plan
from worker.sharding.lanes import Lanes
from worker.tenure import Tenure

Broken = Callable[[], AbstractContextManager[object]]


class Mutation(NamedTuple):
    """What is broken, and the kind of schedule that it has to be seen in."""

    breaks: Broken
    course: str


MUTATIONS: dict[str, Mutation] = {}


def mutation(course: str) -> Callable[[Callable[[], Iterator[None]]], None]:
    def note(function: Callable[[], Iterator[None]]) -> None:
        name = function.__name__.replace("_", " ")
        MUTATIONS[name] = Mutation(contextmanager(function), course)

    return note


@contextmanager
def changed(owner: Any, name: str, make: Callable[[Any], Any]) -> Iterator[None]:
    """Put ``make(what is there)`` in the place of an attribute."""
    with patch.object(owner, name, make(getattr(owner, name))):
        yield


# -- who may begin


@mutation("members")
def begins_without_looking_at_its_lease() -> Iterator[None]:
    def careless(self: Executor, task: Any, now: float) -> int | None:
        if self.draining or now > task.trusted_until:
            return None
        fence = self.fences.get(task.message.shard)
        return max(self.fences.values(), default=1) if fence is None else fence

    with (
        patch.object(Executor, "_fence_for", careless),
        patch.object(Executor, "is_trusted", lambda *_: True),
    ):
        yield


@mutation("members")
def leases_are_trusted_past_their_end() -> Iterator[None]:
    with patch("worker.supervisor.keeper.trusted_until", lambda asked_at, ttl: asked_at + 2 * ttl):
        yield


@mutation("processes")
def claims_are_trusted_past_their_end() -> Iterator[None]:
    with patch("worker.dialogue._TRUST_SHARE", 3.0):
        yield


# -- claims and records


@mutation("machines")
def completes_whoever_owns_it() -> Iterator[None]:
    def complete(self: memory.Records, entry: Complete, now: float, options: Any) -> Answer:
        self.held.pop(entry.record, None)
        self.done[entry.record] = memory.Finished(entry.fingerprint, now + options.retention)
        return Answer.KEPT

    with patch.object(memory.Records, "_complete", complete):
        yield


@mutation("short")
def every_claim_is_fresh() -> Iterator[None]:
    def claim(
        self: memory.Records, entry: Claim, dead: object, now: float, options: Any
    ) -> Verdict:
        self.done.pop(entry.record, None)
        self.held[entry.record] = Held(entry.token, now + options.claim_ttl, 1, 0)
        return Verdict(Answer.FRESH, 1)

    with patch.object(memory.Records, "_claim", claim):
        yield


def _instead_of_busy(answer: Answer) -> Callable[[Any], Any]:
    def make(judge: Any) -> Any:
        def judge_otherwise(*given: Any) -> Verdict:
            verdict: Verdict = judge(*given)
            if verdict.answer is not Answer.BUSY:
                return verdict
            return Verdict(answer, verdict.attempts + 1, verdict.crashes)

        return judge_otherwise

    return make


@mutation("processes")
def busy_is_taken_for_a_duplicate() -> Iterator[None]:
    with changed(memory, "judge_claim", _instead_of_busy(Answer.DUPLICATE)):
        yield


@mutation("processes")
def busy_is_taken_for_fresh() -> Iterator[None]:
    with changed(memory, "judge_claim", _instead_of_busy(Answer.FRESH)):
        yield


@mutation("machines")
def claims_are_not_renewed() -> Iterator[None]:
    with patch.object(Dialogue, "_renewals", lambda *_: []):
        yield


# -- settlement


@mutation("short")
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


@mutation("short")
def acknowledged_when_it_is_delivered() -> Iterator[None]:
    def deliver(self: Settlement, tag: int) -> None:
        self._highest = tag
        self._finished.add(tag)

    with patch.object(Settlement, "deliver", deliver):
        yield


@mutation("short")
def acknowledged_beyond_a_gap() -> Iterator[None]:
    def take(self: Settlement, *, everything: bool = False) -> Acks:
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


@mutation("short")
def a_dead_letter_is_recorded_before_it_is_confirmed() -> Iterator[None]:
    def insist(self: Detour, message: Any, channel: Any, done: Any, *_: Any) -> None:
        done()
        self._later(0.3, lambda: self._link.send(message, lambda _error: None, again=False))

    with patch.object(Detour, "_insist", insist):
        yield


# -- order


@mutation("processes")
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


@mutation("short")
def a_retry_does_not_hold_its_lane() -> Iterator[None]:
    def for_retry(self: Holds, task: Any, lane: Any, due: float) -> None:
        left = [*lane.left]
        lane.left.clear()

        def again() -> None:
            self._lanes.add(task, lane.place[1] if lane.place else None, lane.shard)

        self._timers.at(due, again)
        lane.left.extend(each for each in left if each is not task)

    with (
        patch.object(Holds, "for_retry", for_retry),
        patch("worker.fate._back", lambda *_: False),
    ):
        yield


# -- leases and hand-over


@mutation("members")
def a_lease_is_granted_while_it_is_owned() -> Iterator[None]:
    sync = Book.sync

    def grant(self: Book, said: Any, options: Any, *, now: float, floor: int) -> Any:
        wanted = [*said.acquire]
        if not self.leases or said.leaving:
            return sync(self, said, options, now=now, floor=floor)
        for name in [*self.leases]:
            if self.leases[name].owner != said.member and not wanted and name.endswith("0"):
                new = max(floor, self.granted + 1)
                self.granted = new
                self.leases[name] = LeaseRow(said.member, new, self.watched + options.ttl)
        return sync(self, said, options, now=now, floor=floor)

    with patch.object(Book, "sync", grant):
        yield


@mutation("members")
def a_lease_ends_before_its_time() -> Iterator[None]:
    def is_owned(self: Book, row: LeaseRow) -> bool:
        return bool(row.owner) and row.until > self.watched + 1.7

    with patch.object(Book, "_is_owned", is_owned):
        yield


@mutation("members")
def the_epoch_does_not_rise() -> Iterator[None]:
    sync = Book.sync

    def keep(self: Book, said: Any, options: Any, *, now: float, floor: int) -> Any:
        self.granted = 0
        return sync(self, said, options, now=now, floor=1)

    with patch.object(Book, "sync", keep):
        yield


@mutation("members")
def given_before_running_handlers_end() -> Iterator[None]:
    def give(self: Tenure, shards: Iterable[int]) -> None:
        given = [shard for shard in shards if shard in self._executor.fences]
        before(self, given)
        self._finish([shard for shard in given if shard in self._leaving])

    before = Tenure.give
    with patch.object(Tenure, "give", give):
        yield


@mutation("members")
def given_before_its_channel_is_closed() -> Iterator[None]:
    def finish(self: Tenure, shards: list[int]) -> None:
        if shards:
            self._given(shards)
        before(self, shards)

    def once(self: Tenure, shards: list[int]) -> None:
        given, self._given = self._given, lambda _shards: None
        try:
            if shards:
                given(shards)
            before(self, shards)
        finally:
            self._given = given

    before = Tenure._finish
    with patch.object(Tenure, "_finish", once):
        yield


@mutation("members")
def a_channel_is_left_open() -> Iterator[None]:
    with patch.object(Link, "close_channel", lambda *_: None):
        yield


# -- the number of shards


@mutation("reshard")
def the_old_shards_are_not_drained() -> Iterator[None]:
    advanced = Plan.advanced

    def skip(self: Plan) -> Plan:
        after = advanced(self)
        return advanced(after) if after.phase is Phase.DRAIN else after

    with patch.object(Plan, "advanced", skip):
        yield


@mutation("reshard")
def nobody_waits_for_members_to_follow() -> Iterator[None]:
    with patch("worker.supervisor.resharder.Resharder._all_follow", lambda *_: True):
        yield
