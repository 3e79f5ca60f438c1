"""What every dedup store must do, as tests that authors of backends run against their own.

::

    from worker.testing.dedup_suite import DedupStoreSuite, Features

    class TestMyStore(DedupStoreSuite):
        features = Features(shared=True, survives_restart=False)

        @pytest.fixture
        def dedup_url(self, my_server):
            return f"mine://localhost:{my_server.port}/{uuid4()}"

Each test gets a URL under which nothing is known yet, and opens it as often as it likes.
"""
# ruff: noqa: S101, D102, PLR2004 - tests: asserts, sentences for names, examples

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from worker.dedup.base import (
    OWNER_BYTES,
    RECORD_BYTES,
    Answers,
    Batch,
    Claim,
    Complete,
    Release,
    Renew,
    StoreOptions,
    Verdict,
    record_ids,
)
from worker.dedup.open import open_store
from worker.testing.dedup_model import compare_with_model
from worker.testing.dedup_peer import (
    ALREADY_DONE,
    BUSY,
    CONFLICT,
    DUPLICATE,
    FRESH,
    KEPT,
    LATER,
    LONG,
    OTHER_PAYLOAD,
    PATIENCE,
    PAYLOAD,
    SHORT,
    STALE,
    SUSPECT,
    Peer,
    new_record,
    wait_until,
)
from worker.testing.dedup_races import DedupRaces, Features
from worker.testing.dedup_revisions import DedupRevisions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker.dedup.base import DedupStore
    from worker.testing.dedup_races import Peers

__all__ = ["DedupStoreSuite", "Features"]


class DedupStoreSuite(DedupRaces, DedupRevisions):
    """Derive a test class from this and override ``dedup_url``, and ``features`` where needed."""

    @pytest.fixture
    def dedup_url(self) -> str:
        """Return a URL under which nothing is known yet."""
        raise NotImplementedError

    def open(self, url: str, options: StoreOptions) -> DedupStore:
        return open_store(url, options)

    @pytest.fixture
    def peers(self, dedup_url: str) -> Iterator[Peers]:
        """``peers(2, claim_ttl=1)``: two peers, each with a connection to the same records."""
        opened: list[Peer] = []

        def open_peers(count: int = 1, **options: float) -> list[Peer]:
            wanted = replace(LONG, **options)
            opened.extend(Peer(self.open(dedup_url, wanted)) for _ in range(count))
            return opened[-count:]

        yield open_peers
        for peer in opened:
            peer.store.close()

    # Claims

    def test_the_first_claim_is_fresh_and_counts_one_attempt(self, peers: Peers) -> None:
        (peer,) = peers()
        assert peer.claim(new_record()) == Verdict(FRESH, attempts=1)

    def test_a_claim_is_busy_for_everybody_else_until_its_deadline(self, peers: Peers) -> None:
        (owner, other), record = peers(2), new_record()
        owner.claim(record)
        for solo in (False, True):
            answer, attempts, crashes, wait = other.claim(record, solo=solo)
            assert (answer, attempts, crashes) == (BUSY, 1, 0)
            assert 0 < wait <= LONG.claim_ttl

    def test_another_token_of_the_same_owner_is_somebody_else(self, peers: Peers) -> None:
        (peer,), record = peers(), new_record()
        peer.claim(record)
        peer.token = peer.owner + b"next"
        assert peer.claim(record).answer is BUSY

    def test_a_claim_that_is_repeated_by_its_token_is_not_counted_again(self, peers: Peers) -> None:
        (peer,), record = peers(), new_record()
        assert [peer.claim(record), peer.claim(record)] == [Verdict(FRESH, 1)] * 2

    def test_what_is_done_is_a_duplicate_or_a_conflict(self, peers: Peers) -> None:
        (peer, other), record = peers(2), new_record()
        peer.claim(record)
        assert peer.complete(record) is KEPT
        for solo in (False, True):
            assert other.claim(record, solo=solo) == Verdict(DUPLICATE)
            assert other.claim(record, OTHER_PAYLOAD, solo=solo) == Verdict(CONFLICT)

    def test_what_was_given_back_is_fresh_and_its_attempts_add_up(self, peers: Peers) -> None:
        (peer, other), record = peers(2), new_record()
        peer.claim(record)
        assert peer.release(record) is KEPT
        assert other.claim(record) == Verdict(FRESH, 2)
        assert other.release(record, refund=True) is KEPT
        assert peer.claim(record, solo=True) == Verdict(FRESH, 2)

    def test_what_was_given_back_with_a_wait_cannot_be_claimed_before(self, peers: Peers) -> None:
        (owner, other), record = peers(2), new_record()
        owner.claim(record)
        assert owner.release(record, wait=30) is KEPT
        assert [owner.release(record), owner.renew(record)] == [STALE] * 2
        for peer in (owner, other):
            verdict = peer.claim(record, dead=[owner.owner], solo=True)
            assert (verdict.answer, verdict.attempts, verdict.crashes) == (LATER, 1, 0)
            assert 0 < verdict.wait <= 30.001

    def test_what_was_given_back_with_a_wait_is_fresh_after_it(self, peers: Peers) -> None:
        (owner, other), record = peers(2), new_record()
        owner.claim(record)
        other.claim(record, dead=[owner.owner], solo=True)
        assert other.release(record, refund=True, wait=SHORT) is KEPT
        wait_until(lambda: owner.claim(record).answer is not LATER)
        assert owner.claim(record) == Verdict(FRESH, 3, crashes=1)  # the same claim, repeated
        assert owner.complete(record) is KEPT

    def test_an_effect_is_remembered_while_nobody_may_claim(self, peers: Peers) -> None:
        (owner, other), record = peers(2), new_record()
        owner.claim(record)
        owner.release(record, wait=30)
        assert other.complete(record) is KEPT
        assert owner.claim(record) == Verdict(DUPLICATE)

    def test_what_waits_is_forgotten_like_what_is_idle(self, peers: Peers) -> None:
        (owner,), record = peers(), new_record()
        owner.claim(record)
        owner.release(record, wait=30)
        owner.store.forget([record])
        assert owner.claim(record) == Verdict(FRESH, 1)

    def test_a_refund_of_the_only_attempt_leaves_nothing(self, peers: Peers) -> None:
        (peer, other), record = peers(2), new_record()
        peer.claim(record)
        peer.release(record, refund=True)
        assert other.claim(record) == Verdict(FRESH, 1)

    # Suspects

    def test_an_expired_claim_is_a_suspect_that_only_a_solo_claim_takes(self, peers: Peers) -> None:
        (owner, other), record = peers(2, claim_ttl=SHORT), new_record()
        owner.claim(record)
        wait_until(lambda: other.claim(record).answer is not BUSY)
        assert [other.claim(record) for _ in range(2)] == [Verdict(SUSPECT, 1)] * 2
        assert other.claim(record, solo=True) == Verdict(FRESH, attempts=2, crashes=1)
        assert [owner.complete(record), owner.release(record), owner.renew(record)] == [STALE] * 3
        assert other.complete(record) is KEPT

    def test_an_expired_claim_that_nobody_took_is_still_its_tokens(self, peers: Peers) -> None:
        (other,), records = peers(), [new_record() for _ in range(4)]
        (owner,) = peers(claim_ttl=SHORT)
        for record in records:
            owner.claim(record)
        wait_until(lambda: all(other.claim(record).answer is SUSPECT for record in records))
        assert owner.claim(records[0]) == Verdict(FRESH, 1)
        changes = [owner.renew(records[1]), owner.complete(records[2]), owner.release(records[3])]
        assert changes == [KEPT] * 3

    def test_the_claims_of_a_dead_owner_are_suspects_at_once(self, peers: Peers) -> None:
        (owner, other), record = peers(2), new_record()
        owner.claim(record)
        assert other.claim(record, dead=[os.urandom(OWNER_BYTES)]).answer is BUSY
        dead = {os.urandom(OWNER_BYTES), owner.owner}
        assert other.claim(record, dead=dead) == Verdict(SUSPECT, 1)
        assert other.claim(record).answer is BUSY  # the batch told, the store does not keep it
        assert other.claim(record, dead=dead, solo=True) == Verdict(FRESH, 2, crashes=1)
        assert other.claim(record, dead=dead, solo=True) == Verdict(FRESH, 2, crashes=1)
        assert other.release(record, refund=True) is KEPT
        assert other.claim(record) == Verdict(FRESH, 2, crashes=1)

    def test_a_renewed_claim_lives_on_by_the_clock_of_the_store(self, peers: Peers) -> None:
        (owner, other), record = peers(2), new_record()
        owner.claim(record)
        wait_until(lambda: other.claim(record).wait < LONG.claim_ttl - 0.05)
        before = other.claim(record).wait
        assert owner.renew(record) is KEPT
        assert other.claim(record).wait > before

    # Compare-and-set

    def test_a_stale_token_changes_nothing(self, peers: Peers) -> None:
        (owner, other), record = peers(2), new_record()
        owner.claim(record)
        assert [other.complete(record), other.release(record), other.renew(record)] == [STALE] * 3
        assert other.claim(record).answer is BUSY
        assert [owner.renew(record), owner.release(record)] == [KEPT] * 2
        assert [owner.renew(record), owner.release(record)] == [STALE] * 2
        assert [owner.renew(new_record()), owner.release(new_record())] == [STALE] * 2

    def test_an_effect_is_remembered_where_nobody_owns_the_record(self, peers: Peers) -> None:
        (owner, other), absent, idle = peers(2), new_record(), new_record()
        owner.claim(idle)
        owner.release(idle)
        assert [other.complete(absent), other.complete(idle)] == [KEPT] * 2
        assert [owner.claim(absent), owner.claim(idle)] == [Verdict(DUPLICATE)] * 2

    def test_what_is_done_stays_as_it_was_done(self, peers: Peers) -> None:
        (owner, other), record = peers(2), new_record()
        owner.complete(record)
        assert [owner.complete(record), other.complete(record, OTHER_PAYLOAD)] == [ALREADY_DONE] * 2
        assert [owner.renew(record), owner.release(record)] == [STALE] * 2
        assert other.claim(record) == Verdict(DUPLICATE)

    # Batches

    def test_a_batch_is_applied_in_its_promised_order(self, peers: Peers) -> None:
        ((peer,), (other,)), records = (peers(), peers()), [new_record() for _ in range(4)]
        done, given_back, kept, fresh = records
        for record in (done, given_back, kept):
            peer.claim(record)
        answers = other.store.apply(
            Batch(
                completes=[Complete(done, peer.token, PAYLOAD)] * 2,
                releases=[Release(done, peer.token), Release(given_back, peer.token)],
                renewals=[Renew(given_back, peer.token), Renew(kept, peer.token)],
                claims=[Claim(record, other.token, PAYLOAD) for record in records]
                + [Claim(fresh, peer.token, PAYLOAD)],
            )
        )
        assert answers[:3] == ([KEPT, ALREADY_DONE], [STALE, KEPT], [STALE, KEPT])
        verdicts = [DUPLICATE, FRESH, BUSY, FRESH, BUSY]
        assert [verdict.answer for verdict in answers.claims] == verdicts
        assert [verdict.attempts for verdict in answers.claims] == [0, 2, 1, 1, 1]

    def test_a_batch_that_is_applied_twice_changes_nothing_more(self, peers: Peers) -> None:
        (peer, other), records = peers(2), [new_record() for _ in range(5)]
        done, given_back, kept, taken, fresh = records
        for record in (done, given_back, kept):
            peer.claim(record)
        other.claim(taken)
        batch = Batch(
            completes=[Complete(done, peer.token, PAYLOAD)],
            releases=[Release(given_back, peer.token, refund=False)],
            renewals=[Renew(kept, peer.token)],
            claims=[
                Claim(taken, peer.token, PAYLOAD, solo=True),
                Claim(fresh, peer.token, PAYLOAD),
            ],
            dead=[other.owner],
        )
        first, second = peer.store.apply(batch), peer.store.apply(batch)
        assert first.claims == second.claims == [Verdict(FRESH, 2, 1), Verdict(FRESH, 1)]
        assert (second.completes, second.renewals) == ([ALREADY_DONE], [KEPT])
        assert other.claim(given_back) == Verdict(FRESH, 2)

    def test_an_empty_batch_has_no_answers(self, peers: Peers) -> None:
        (peer,) = peers()
        assert peer.store.apply(Batch()) == Answers([], [], [], [])

    def test_ten_thousand_records_fit_one_batch(self, peers: Peers) -> None:
        (peer, other), records = peers(2), [new_record() for _ in range(10_000)]
        claims = [Claim(record, peer.token, PAYLOAD) for record in records]
        assert peer.store.apply(Batch(claims=claims)).claims == [Verdict(FRESH, 1)] * 10_000
        completes = [Complete(record, peer.token, PAYLOAD) for record in records]
        assert peer.store.apply(Batch(completes=completes)).completes == [KEPT] * 10_000
        assert other.store.apply(Batch(claims=claims)).claims == [Verdict(DUPLICATE)] * 10_000

    def test_any_batches_in_any_order_are_answered_as_the_model_answers(self, peers: Peers) -> None:
        first, second = peers(2)
        compare_with_model(first.store, second.store, has_revisions=self.features.revisions)

    # Names

    def test_no_id_is_too_strange(self, peers: Peers) -> None:
        (peer,) = peers()
        ids = [
            "",
            "\0",
            "\0\0",
            "{}",
            "}{",
            "\r\n",
            "'; --",
            "%s",
            "\ud800",
            "é",
            "e\u0301",
            "*" * 10**6,
        ]
        names = [bytes(RECORD_BYTES), b"\xff" * RECORD_BYTES, b"{}\r\n" * 4, b"\0" * 15 + b"}"]
        names += [record_ids(handler)(text) for handler in ("bank.{x}", "bank") for text in ids]
        peer.token = os.urandom(4) + b"\0\r\n}{\0\0\0"
        for record in names:
            assert peer.claim(record, bytes(4)) == Verdict(FRESH, 1)
        for record in names:
            assert peer.complete(record, bytes(4)) is KEPT
            assert peer.claim(record, bytes(4)) == Verdict(DUPLICATE)

    # Time

    def test_a_done_id_is_remembered_for_the_retention_and_then_forgotten(
        self, peers: Peers
    ) -> None:
        (peer,), retention = peers(claim_ttl=SHORT, retention=1.0), 1.0
        idle, expired = new_record(), new_record()
        peer.claim(idle)
        peer.release(idle)
        peer.claim(expired)
        done: dict[bytes, float] = {}
        forgotten = 0
        begin = time.monotonic()
        while forgotten < 10:
            assert time.monotonic() < begin + PATIENCE
            if len(done) < 20:
                record, now = new_record(), time.monotonic()
                peer.complete(record)
                done[record] = now
            for record, since in list(done.items()):
                if peer.claim(record).answer is not DUPLICATE:
                    assert time.monotonic() - since >= retention - 0.01
                    del done[record]
                    forgotten += 1
            time.sleep(retention / 10)
        peer.token = peer.owner + b"next"
        assert peer.claim(idle) == Verdict(FRESH, 2)  # counts are kept beyond the retention
        assert peer.claim(expired) == Verdict(SUSPECT, 1)

    # Parked keys

    def test_a_key_is_parked_until_it_is_unparked_at_its_last_number(self, peers: Peers) -> None:
        (one,), (other,) = peers(), peers()
        first, last = 1_800_000_000_000_000, 1_800_000_000_000_001  # microseconds, in 2027
        assert one.store.parked("bank") == {}
        assert one.store.unpark("bank", "key", last) is False
        for at in (first, last, first, last):
            one.store.mark_parked("bank", "key", at)
        assert other.store.parked("bank") == {"key": last}
        assert other.store.unpark("bank", "key", first) is False
        assert one.store.parked("bank") == {"key": last}
        assert other.store.unpark("bank", "key", last) is True
        assert other.store.unpark("bank", "key", last) is False
        assert one.store.parked("bank") == {}

    def test_parked_keys_belong_to_their_service_and_may_have_any_name(self, peers: Peers) -> None:
        (peer,) = peers()
        keys = ["", "\0", "{}", "a:b", "\r\n", "\ud800", "é", "unpark", "'"]
        for number, key in enumerate(keys):
            peer.store.mark_parked("bank", key, number)
            peer.store.mark_parked("bank:a", key, 1)
        assert peer.store.parked("bank") == {key: number for number, key in enumerate(keys)}
        assert peer.store.unpark("mailer", "", 9) is False
        assert peer.store.unpark("bank", "", 0) is True
        assert set(peer.store.parked("bank")) == set(keys[1:])
        assert peer.store.parked("bank:a") == dict.fromkeys(keys, 1)

    def test_a_store_says_what_it_is(self, peers: Peers) -> None:
        (peer,) = peers()
        assert peer.store.shared is self.features.shared
        assert peer.store.tier
        assert "\n" not in peer.store.tier
        assert all(peer.store.warnings())
