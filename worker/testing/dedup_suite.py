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
# ruff: noqa: S101, S603, D102, PLR2004 - tests: asserts, sentences for names, examples

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from threading import Barrier
from typing import TYPE_CHECKING, ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from worker.dedup.base import (
    OWNER_BYTES,
    RECORD_BYTES,
    TOKEN_BYTES,
    Answer,
    Answers,
    Batch,
    Claim,
    Complete,
    Release,
    Renew,
    StoreOptions,
    Verdict,
    fingerprint,
    record_ids,
)
from worker.dedup.open import open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from worker.dedup.base import DedupStore

    Peers = Callable[..., "list[Peer]"]

FRESH, DUPLICATE, BUSY, CONFLICT = Answer.FRESH, Answer.DUPLICATE, Answer.BUSY, Answer.CONFLICT
SUSPECT, KEPT, STALE, ALREADY_DONE = (
    Answer.SUSPECT, Answer.KEPT, Answer.STALE, Answer.ALREADY_DONE,
)  # fmt: skip
PAYLOAD, OTHER_PAYLOAD = fingerprint(b"payload"), fingerprint(b"other payload")
#: Claims live longer than any test, unless it asks for SHORT ones to see them expire.
LONG, SHORT = StoreOptions(claim_ttl=3600.0, timeout=10.0), 0.2
PATIENCE = 20.0
_OTHER_PROCESS = """
import sys
from worker.testing.dedup_suite import LONG, Peer, open_store
peer = Peer(open_store(sys.argv[1], LONG))
record = bytes.fromhex(sys.argv[2])
print(peer.claim(record).answer.name, peer.complete(record).name)
"""


@dataclass(frozen=True, slots=True)
class Features:
    """What a store claims to be: the suite holds it to that and to no more."""

    #: Other processes that open the URL see the same records.
    shared: bool = True
    #: Records outlive :meth:`DedupStoreSuite.restart`.
    survives_restart: bool = True


class Peer:
    """One life of a consumer process: a connection, an owner, and a token of it."""

    def __init__(self, store: DedupStore) -> None:
        self.store = store
        self.owner = os.urandom(OWNER_BYTES)
        self.token = self.owner + bytes(TOKEN_BYTES - OWNER_BYTES)

    def claim(
        self,
        record: bytes,
        payload: bytes = PAYLOAD,
        *,
        solo: bool = False,
        dead: Collection[bytes] = (),
    ) -> Verdict:
        claims = [Claim(record, self.token, payload, solo)]
        return self.store.apply(Batch(claims=claims, dead=dead)).claims[0]

    def complete(self, record: bytes, payload: bytes = PAYLOAD) -> Answer:
        completes = [Complete(record, self.token, payload)]
        return self.store.apply(Batch(completes=completes)).completes[0]

    def release(self, record: bytes, *, refund: bool = False) -> Answer:
        return self.store.apply(Batch(releases=[Release(record, self.token, refund)])).releases[0]

    def renew(self, record: bytes) -> Answer:
        return self.store.apply(Batch(renewals=[Renew(record, self.token)])).renewals[0]


def new_record() -> bytes:
    """Return a record that nobody knows."""
    return os.urandom(RECORD_BYTES)


def wait_until(condition: Callable[[], object]) -> None:
    """Wait for ``condition``; fail when it takes longer than PATIENCE."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE:g} s"
        time.sleep(0.01)


class Model:
    """The rules in the fewest words, without time: nothing expires and nothing is forgotten."""

    def __init__(self) -> None:
        self.done: dict[bytes, bytes] = {}
        self.held: dict[bytes, tuple[bytes | None, int, int]] = {}

    def apply(self, batch: Batch) -> Answers:
        return Answers(
            [self.complete(*entry) for entry in batch.completes],
            [self.release(*entry) for entry in batch.releases],
            [
                KEPT if self.owner(entry.record) == entry.token else STALE
                for entry in batch.renewals
            ],
            [self.claim(*entry, batch.dead) for entry in batch.claims],
        )

    def owner(self, record: bytes) -> bytes | None:
        return self.held.get(record, (None, 0, 0))[0]

    def complete(self, record: bytes, token: bytes, payload: bytes) -> Answer:
        if record in self.done:
            return ALREADY_DONE
        if self.owner(record) not in {None, token}:
            return STALE
        self.held.pop(record, None)
        self.done[record] = payload
        return KEPT

    def release(self, record: bytes, token: bytes, refund: bool) -> Answer:  # noqa: FBT001
        if self.owner(record) != token:
            return STALE
        _, attempts, crashes = self.held[record]
        self.held[record] = (None, attempts - refund, crashes)
        return KEPT

    def claim(
        self,
        record: bytes,
        token: bytes,
        payload: bytes,
        solo: bool,  # noqa: FBT001
        dead: Collection[bytes],
    ) -> Verdict:
        if record in self.done:
            return Verdict(DUPLICATE if self.done[record] == payload else CONFLICT)
        owner, attempts, crashes = self.held.get(record, (None, 0, 0))
        if owner is None:
            attempts += 1
        elif owner != token:
            if owner[:OWNER_BYTES] not in dead:
                return Verdict(BUSY, attempts, crashes)
            if not solo:
                return Verdict(SUSPECT, attempts, crashes)
            attempts, crashes = attempts + 1, crashes + 1
        self.held[record] = (token, attempts, crashes)
        return Verdict(FRESH, attempts, crashes)


def compare_with_model(first: DedupStore, second: DedupStore) -> None:
    """Apply random batches over both connections; every answer must be the model's."""
    owners = [os.urandom(OWNER_BYTES) for _ in range(2)]
    # Few of each, so that they meet. The tokens are used again and again, as no caller would.
    tokens = st.sampled_from([owner + bytes([0, 0, 0, n]) for owner in owners for n in range(2)])
    payloads = st.sampled_from([PAYLOAD, OTHER_PAYLOAD])
    numbers, flags = st.integers(0, 3), st.booleans()

    class Machine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.records = [new_record() for _ in range(4)]
            self.model = Model()
            self.batch = Batch()

        @rule(
            completes=st.lists(st.tuples(numbers, tokens, payloads), max_size=3),
            releases=st.lists(st.tuples(numbers, tokens, flags), max_size=3),
            renewals=st.lists(st.tuples(numbers, tokens), max_size=3),
            claims=st.lists(st.tuples(numbers, tokens, payloads, flags), max_size=5),
            dead=st.sets(st.sampled_from(owners)),
            store=st.sampled_from([first, second]),
        )
        def apply(  # noqa: PLR0913, PLR0917 - the parts of a batch
            self,
            completes: list[tuple[int, bytes, bytes]],
            releases: list[tuple[int, bytes, bool]],
            renewals: list[tuple[int, bytes]],
            claims: list[tuple[int, bytes, bytes, bool]],
            dead: set[bytes],
            store: DedupStore,
        ) -> None:
            self.batch = Batch(
                [Complete(self.records[n], token, payload) for n, token, payload in completes],
                [Release(self.records[n], token, refund) for n, token, refund in releases],
                [Renew(self.records[n], token) for n, token in renewals],
                [Claim(self.records[n], t, payload, solo) for n, t, payload, solo in claims],
                dead,
            )
            self.apply_again(store)

        @rule(store=st.sampled_from([first, second]))
        def apply_again(self, store: DedupStore) -> None:
            answers = store.apply(self.batch)
            for verdict in answers.claims:
                assert (verdict.wait > 0) is (verdict.answer is BUSY)
            timeless = [verdict._replace(wait=0.0) for verdict in answers.claims]
            assert answers._replace(claims=timeless) == self.model.apply(self.batch)

    run_state_machine_as_test(
        Machine, settings=settings(max_examples=60, stateful_step_count=20, deadline=None)
    )


class DedupStoreSuite:
    """Derive a test class from this and override ``dedup_url``, and ``features`` where needed."""

    features: ClassVar[Features] = Features()

    @pytest.fixture
    def dedup_url(self) -> str:
        """Return a URL under which nothing is known yet."""
        raise NotImplementedError

    def open(self, url: str, options: StoreOptions) -> DedupStore:
        return open_store(url, options)

    def restart(self) -> None:
        """Restart what keeps the records: a server, where there is one."""

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
        compare_with_model(first.store, second.store)

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

    def test_a_token_of_zeros_is_a_token_and_not_nobody(self, peers: Peers) -> None:
        (peer, other), idle, held = peers(2), new_record(), new_record()
        other.claim(idle)
        other.release(idle)
        peer.token = bytes(TOKEN_BYTES)
        assert [peer.renew(idle), peer.release(idle)] == [STALE] * 2
        assert peer.claim(idle) == Verdict(FRESH, 2)
        assert peer.claim(held) == Verdict(FRESH, 1)
        assert other.claim(held).answer is BUSY
        assert other.complete(held) is STALE

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

    # Connections

    def test_of_many_that_claim_the_same_records_exactly_one_wins_each(self, peers: Peers) -> None:
        (dead,), racers = peers(), peers(4)
        fresh, suspects = ([new_record() for _ in range(300)] for _ in range(2))
        for record in suspects:
            dead.claim(record)
        start = Barrier(len(racers))

        def race(peer: Peer) -> list[bytes]:
            won = []
            start.wait()
            for at in range(0, 300, 3):
                records = fresh[at : at + 3] + suspects[at : at + 3]
                claims = [Claim(record, peer.token, PAYLOAD, solo=True) for record in records]
                verdicts = peer.store.apply(Batch(claims=claims, dead=[dead.owner])).claims
                won += [r for r, v in zip(records, verdicts, strict=True) if v.answer is FRESH]
            return won

        with ThreadPoolExecutor(len(racers)) as pool:
            winners = Counter(record for won in pool.map(race, racers) for record in won)
        assert winners == Counter(fresh + suspects)

    def test_an_owner_completes_or_is_overtaken_but_never_both(self, peers: Peers) -> None:
        (owner, other), records = peers(2), [new_record() for _ in range(200)]
        for record in records:
            owner.claim(record)
        start = Barrier(2)

        def finish() -> list[Answer]:
            start.wait()
            return [owner.complete(record) for record in records]

        def overtake() -> list[Answer]:
            start.wait()
            dead = [owner.owner]
            return [other.claim(r, solo=True, dead=dead).answer for r in reversed(records)]

        with ThreadPoolExecutor(2) as pool:
            finished, overtaken = pool.submit(finish), pool.submit(overtake)
            pairs = set(zip(finished.result(), reversed(overtaken.result()), strict=True))
        assert pairs <= {(KEPT, DUPLICATE), (STALE, FRESH)}

    def test_another_process_sees_the_same_records(self, peers: Peers, dedup_url: str) -> None:
        (peer,), claimed, absent = peers(), new_record(), new_record()
        peer.claim(claimed)
        said = [
            subprocess.run(
                [sys.executable, "-c", _OTHER_PROCESS, dedup_url, record.hex()],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
                capture_output=True,
                check=True,
                text=True,
            ).stdout.split()
            for record in (claimed, absent)
        ]
        shared = self.features.shared
        assert said == [["BUSY", "STALE"] if shared else ["FRESH", "KEPT"], ["FRESH", "KEPT"]]
        assert peer.claim(absent).answer is (DUPLICATE if shared else FRESH)

    def test_what_was_told_survives_what_the_store_says_it_survives(self, peers: Peers) -> None:
        (peer,), done, idle = peers(), new_record(), new_record()
        peer.complete(done)
        peer.claim(idle)
        peer.release(idle)
        peer.store.add_parked("bank", "key", 2)
        peer.store.close()
        if self.features.survives_restart:
            self.restart()
        (later,) = peers()
        assert later.claim(done) == Verdict(DUPLICATE)
        assert later.claim(idle) == Verdict(FRESH, 2)
        assert later.store.parked("bank") == {"key": 2}

    # Forgetting

    def test_forgetting_makes_done_and_idle_records_fresh_again(self, peers: Peers) -> None:
        (peer,), done, idle = peers(), new_record(), new_record()
        peer.complete(done)
        peer.claim(idle)
        peer.release(idle)
        for _ in range(2):
            peer.store.forget([done, idle, new_record()])
        assert peer.claim(done) == Verdict(FRESH, 1)
        assert peer.claim(idle) == Verdict(FRESH, 1)

    def test_forgetting_leaves_a_claimed_record_to_its_owner(self, peers: Peers) -> None:
        (peer,), claimed = peers(), new_record()
        peer.claim(claimed)
        peer.store.forget([claimed])
        assert peer.complete(claimed) is KEPT

    # Parked keys

    def test_a_key_is_parked_from_its_first_number_until_unparked(self, peers: Peers) -> None:
        (one,), (other,) = peers(), peers()
        assert one.store.parked("bank") == {}
        assert one.store.add_parked("bank", "key", 0) == 0
        assert other.store.parked("bank") == {"key": 0}
        assert other.store.add_parked("bank", "key", 3) == 3
        assert one.store.add_parked("bank", "key", -2) == 1
        assert one.store.unpark("bank", "key") is False
        assert one.store.parked("bank") == {"key": 1}
        assert other.store.add_parked("bank", "key", -1) == 0
        assert one.store.unpark("bank", "key") is True
        assert other.store.parked("bank") == {}

    def test_a_number_of_parked_messages_never_falls_below_zero(self, peers: Peers) -> None:
        (peer,) = peers()
        assert peer.store.add_parked("bank", "new", -1) == 0
        assert peer.store.add_parked("bank", "new", 2) == 2
        assert peer.store.add_parked("bank", "new", -5) == 0
        assert peer.store.parked("bank") == {"new": 0}

    def test_parked_keys_belong_to_their_service_and_may_have_any_name(self, peers: Peers) -> None:
        (peer,) = peers()
        keys = ["", "\0", "{}", "a:b", "\r\n", "\ud800", "é", "unpark", "'"]
        for number, key in enumerate(keys):
            peer.store.add_parked("bank", key, number)
            peer.store.add_parked("bank:a", key, 1)
        assert peer.store.parked("bank") == {key: number for number, key in enumerate(keys)}
        assert peer.store.unpark("mailer", "") is False
        assert peer.store.unpark("bank", "") is True
        assert peer.store.unpark("bank", "") is False
        assert set(peer.store.parked("bank")) == set(keys[1:])
        assert peer.store.parked("bank:a") == dict.fromkeys(keys, 1)

    def test_a_store_says_what_it_is(self, peers: Peers) -> None:
        (peer,) = peers()
        assert peer.store.shared is self.features.shared
        assert peer.store.tier
        assert "\n" not in peer.store.tier
        assert all(peer.store.warnings())
