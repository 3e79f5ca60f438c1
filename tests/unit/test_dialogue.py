"""The talk with the store: one round trip a tick, harmless to repeat, never trusted too long."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from worker.dedup.base import Answer, Answers, Batch, StoreOptions, Verdict, record_ids
from worker.dedup.memory import MemoryStore
from worker.dialogue import Dialogue, Replies
from worker.errors import DedupUnavailable
from worker.sharding.lanes import Lane, Run
from worker.task import Task
from worker.telemetry import RuntimeEvent, StoreAway, StoreBack, Telemetry
from worker.testing import FakeClock

TTL = 10.0
OPTIONS = StoreOptions(claim_ttl=TTL)
record_id = record_ids("bank.record")


def task(message_id: str, fingerprint: bytes = b"1234") -> Task:
    """Return a task of ``message_id`` at one handler."""
    handler: Any = SimpleNamespace(name="record", is_async=False, record_id=record_id)
    message: Any = SimpleNamespace(id=message_id)
    delivery: Any = SimpleNamespace(fingerprint=fingerprint)
    return Task(delivery, message, handler)


def run(*tasks: Task) -> Run[Task]:
    return Run(Lane(0, None), list(tasks))


class Store(MemoryStore):
    """A store in memory that can be away, with or without having heard the last batch."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(OPTIONS, clock)
        self.batches: list[Batch] = []
        self.fails: str = ""

    def apply(self, batch: Batch) -> Answers:
        self.batches.append(batch)
        if self.fails == "before":
            raise DedupUnavailable("it is away")
        answers = super().apply(batch)
        if self.fails == "after":
            raise DedupUnavailable("its answer got lost")
        return answers


class Talk:
    """A dialogue with its store and clock."""

    def __init__(self, owner: bytes = b"owner-01") -> None:
        self.clock = FakeClock()
        self.store = Store(self.clock)
        self.telemetry = Telemetry()
        self.dialogue = self.other(owner)

    def other(self, owner: bytes) -> Dialogue:
        """Return another consumer's dialogue with the same store."""
        return Dialogue(self.store, owner, TTL, self.telemetry, self.clock)

    def claim(self, *tasks: Task) -> list[Verdict]:
        self.dialogue.claim(run(*tasks))
        ((_, verdicts),) = self.exchange().claimed
        return verdicts

    def exchange(self) -> Replies:
        replies = self.dialogue.exchange(lambda: None)
        assert replies is not None
        return replies

    def complete(self, *tasks: Task) -> list[Answer]:
        for one in tasks:
            one.effective = True
            self.dialogue.complete(one)
        return [answer for _, answer in self.exchange().completed]


@pytest.fixture
def talk() -> Talk:
    return Talk()


class TestOneRoundTrip:
    def test_nothing_to_say_is_no_round_trip(self, talk: Talk) -> None:
        assert talk.dialogue.exchange(lambda: None) is None
        assert talk.store.batches == []

    def test_everything_of_a_tick_goes_in_one_batch(self, talk: Talk) -> None:
        done, given_up, new = task("done"), task("given up"), task("new")
        talk.claim(done, given_up)
        talk.store.batches.clear()
        talk.dialogue.complete(done)
        talk.dialogue.release(given_up, refund=True)
        talk.dialogue.claim(run(new))
        replies = talk.exchange()

        assert len(talk.store.batches) == 1
        assert replies.completed == [(done, Answer.KEPT)]
        assert [v.answer for v in replies.claimed[0][1]] == [Answer.FRESH]

    def test_the_answers_come_back_with_what_they_are_for(self, talk: Talk) -> None:
        first, second, third = run(task("a"), task("b")), run(task("c")), run(task("a", b"else"))
        talk.complete(*first.tasks)
        for one in (first, second, third):
            talk.dialogue.claim(one)
        claimed = talk.exchange().claimed

        assert [found for found, _ in claimed] == [first, second, third]
        assert [[v.answer for v in verdicts] for _, verdicts in claimed] == [
            [Answer.DUPLICATE, Answer.DUPLICATE],
            [Answer.FRESH],
            [Answer.CONFLICT],
        ]

    def test_every_claim_has_a_token_of_its_own_that_begins_with_the_owner(
        self, talk: Talk
    ) -> None:
        tasks = [task(str(n)) for n in range(5)]
        talk.claim(*tasks)

        assert len({t.token for t in tasks}) == 5
        assert {t.token[:8] for t in tasks} == {b"owner-01"}


class TestOwning:
    def test_a_fresh_claim_tells_the_attempt_and_is_owned(self, talk: Talk) -> None:
        one = task("a")
        talk.claim(one)

        assert one.attempt == 1
        assert one in talk.dialogue.owned

    def test_what_is_released_is_not_owned_and_counts_unless_it_never_ran(self, talk: Talk) -> None:
        one = task("a")
        talk.claim(one)
        talk.dialogue.release(one, refund=True)
        assert one not in talk.dialogue.owned
        talk.claim(one)
        assert one.attempt == 1
        talk.dialogue.release(one, refund=False)
        talk.claim(one)
        assert one.attempt == 2

    def test_what_is_completed_is_not_owned_any_more(self, talk: Talk) -> None:
        one = task("a")
        talk.claim(one)

        assert talk.complete(one) == [Answer.KEPT]
        assert not talk.dialogue.owned

    def test_anothers_claim_is_busy_until_it_expires(self, talk: Talk) -> None:
        theirs = talk.other(b"other-01")
        theirs.claim(run(task("a")))
        theirs.exchange(lambda: None)

        (verdict,) = talk.claim(task("a"))
        assert verdict.answer is Answer.BUSY
        assert 0 < verdict.wait <= TTL
        assert not talk.dialogue.owned
        talk.clock.advance(TTL + 1)
        assert talk.claim(task("a"))[0].answer is Answer.SUSPECT

    def test_the_claims_of_the_dead_are_suspect_at_once(self, talk: Talk) -> None:
        theirs = talk.other(b"other-01")
        theirs.claim(run(task("a")))
        theirs.exchange(lambda: None)
        talk.dialogue.bury([b"other-01"])

        assert talk.claim(task("a"))[0].answer is Answer.SUSPECT
        one = task("a")
        talk.dialogue.claim(run(one), solo=True)
        ((_, (verdict,)),) = talk.exchange().claimed
        assert (one.attempt, verdict.crashes) == (2, 1)


class TestTrust:
    def test_a_claim_is_trusted_for_less_than_it_lives(self, talk: Talk) -> None:
        one = task("a")
        asked = talk.clock()
        talk.claim(one)

        assert asked < one.trusted_until < asked + TTL

    def test_what_runs_long_is_renewed_before_it_expires(self, talk: Talk) -> None:
        one = task("a")
        talk.claim(one)
        for _ in range(100):
            talk.clock.advance(0.5)
            talk.dialogue.exchange(lambda: None)
            assert one.trusted_until > talk.clock()

        assert talk.complete(one) == [Answer.KEPT]
        assert sum(len(batch.renewals) for batch in talk.store.batches) < 30

    def test_a_renewal_that_comes_too_late_makes_no_trust(self, talk: Talk) -> None:
        one = task("a")
        talk.claim(one)
        trusted = one.trusted_until
        talk.clock.advance(TTL + 1)
        theirs = talk.other(b"other-01")
        theirs.claim(run(task("a")), solo=True)
        theirs.exchange(lambda: None)
        talk.dialogue.exchange(lambda: None)

        assert one.trusted_until == trusted

    def test_a_stale_owner_changes_nothing_and_learns_it(self, talk: Talk) -> None:
        one = task("a")
        talk.claim(one)
        talk.clock.advance(TTL + 1)
        theirs = talk.other(b"other-01")
        again = task("a")
        theirs.claim(run(again), solo=True)
        theirs.exchange(lambda: None)

        assert talk.complete(one) == [Answer.STALE]
        theirs.complete(again)
        replies = theirs.exchange(lambda: None)
        assert replies is not None
        assert replies.completed == [(again, Answer.KEPT)]


class TestWhenTheStoreIsAway:
    def events(self, talk: Talk) -> list[RuntimeEvent]:
        found: list[RuntimeEvent] = []
        talk.telemetry._subscribers = (found.append,)
        return found

    @pytest.mark.parametrize("lost", ["before", "after"])
    def test_the_same_batch_is_sent_until_it_is_answered(self, talk: Talk, lost: str) -> None:
        done, new = task("done"), task("new")
        talk.claim(done)
        talk.store.batches.clear()
        talk.store.fails = lost
        talk.dialogue.complete(done)
        talk.dialogue.claim(run(new))
        for _ in range(3):
            assert talk.dialogue.exchange(lambda: None) is None
            talk.clock.advance(5.0)
        talk.store.fails = ""
        replies = talk.exchange()

        assert all(batch is talk.store.batches[0] for batch in talk.store.batches)
        assert replies.repeated
        wanted = Answer.KEPT if lost == "before" else Answer.ALREADY_DONE
        assert replies.completed == [(done, wanted)]
        assert new.attempt == 1, "a claim that is repeated does not count twice"

    def test_it_is_asked_again_at_growing_intervals_and_not_in_between(self, talk: Talk) -> None:
        talk.store.fails = "before"
        talk.dialogue.claim(run(task("a")))
        waits = []
        for _ in range(8):
            assert talk.dialogue.exchange(lambda: None) is None
            asked = len(talk.store.batches)
            assert talk.dialogue.exchange(lambda: None) is None
            assert len(talk.store.batches) == asked
            waits.append(talk.dialogue.next_try - talk.clock())
            talk.clock.advance(waits[-1])

        assert waits == sorted(waits)
        assert 0.9 < waits[-1] <= 1.1

    def test_who_ends_asks_at_once_whenever_the_next_time_would_be(self, talk: Talk) -> None:
        talk.store.fails = "before"
        talk.dialogue.claim(run(task("a")))
        assert talk.dialogue.exchange(lambda: None) is None
        talk.store.fails = ""

        assert talk.dialogue.exchange(lambda: None) is None
        replies = talk.dialogue.exchange(lambda: None, last=True)

        assert replies is not None
        assert replies.repeated

    def test_it_says_so_once_and_once_when_it_is_back(self, talk: Talk) -> None:
        events = self.events(talk)
        talk.store.fails = "before"
        talk.dialogue.claim(run(task("a")))
        for _ in range(3):
            talk.dialogue.exchange(lambda: None)
            talk.clock.advance(2.0)
        assert talk.dialogue.away_since is not None
        talk.store.fails = ""
        talk.exchange()

        assert [type(event) for event in events] == [StoreAway, StoreBack]
        assert talk.dialogue.away_since is None
        assert talk.dialogue.next_try == 0.0

    def test_what_is_said_meanwhile_goes_out_afterwards(self, talk: Talk) -> None:
        talk.store.fails = "before"
        talk.dialogue.claim(run(task("a")))
        talk.dialogue.exchange(lambda: None)
        talk.dialogue.claim(run(task("b")))
        assert talk.dialogue.busy
        talk.store.fails = ""
        talk.clock.advance(1.0)
        talk.exchange()
        assert talk.dialogue.busy
        talk.exchange()

        assert not talk.dialogue.busy


def test_no_more_of_the_dead_are_remembered_than_can_still_have_claims(talk: Talk) -> None:
    for number in range(200):
        talk.dialogue.bury([number.to_bytes(8, "big")])
    talk.claim(task("a"))

    dead = talk.store.batches[-1].dead
    assert len(dead) == 64
    assert (199).to_bytes(8, "big") in dead
