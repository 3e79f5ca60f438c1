"""The part of the suite of dedup stores in which several connections meet."""
# ruff: noqa: S101, S603, D102 - tests: asserts, sentences for names, examples

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Barrier
from typing import ClassVar

from worker.dedup.base import Answer, Batch, Claim, Verdict
from worker.testing.dedup_peer import (
    ALREADY_DONE,
    DUPLICATE,
    FRESH,
    KEPT,
    PAYLOAD,
    SHORT,
    STALE,
    SUSPECT,
    Peer,
    new_record,
    wait_until,
)

Peers = Callable[..., "list[Peer]"]
_OTHER_PROCESS = """
import sys
from worker.dedup.open import open_store
from worker.testing.dedup_peer import LONG, Peer
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
    #: It keeps revisions.
    revisions: bool = True


class DedupRaces:
    """Of all that reach for a record, one gets it."""

    features: ClassVar[Features] = Features()

    def restart(self) -> None:
        """Restart what keeps the records: a server, where there is one."""

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
        peer.store.mark_parked("bank", "key", 2)
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
            assert not peer.store.forget([done, idle, new_record()])
        assert peer.claim(done) == Verdict(FRESH, 1)
        assert peer.claim(idle) == Verdict(FRESH, 1)

    def test_forgetting_leaves_a_claimed_record_to_its_owner(self, peers: Peers) -> None:
        (peer,), claimed, done = peers(), new_record(), new_record()
        peer.claim(claimed)
        peer.complete(done)
        assert peer.store.forget([claimed, done, claimed]) == {claimed}
        assert peer.complete(claimed) is KEPT
        assert not peer.store.forget([claimed])
        assert peer.claim(claimed) == Verdict(FRESH, 1)

    def test_forgetting_leaves_a_claim_that_ran_out_to_its_owner(self, peers: Peers) -> None:
        (owner, other), record = peers(2, claim_ttl=SHORT), new_record()
        owner.claim(record)
        wait_until(lambda: other.claim(record).answer is SUSPECT)
        assert other.store.forget([record]) == {record}
        assert other.claim(record) == Verdict(SUSPECT, 1)
        assert owner.complete(record) is KEPT

    def test_what_was_set_aside_is_done_only_while_its_claim_lasts(self, peers: Peers) -> None:
        (owner, other), records = peers(2), [new_record() for _ in range(3)]
        waiting, forgotten, taken = records
        for record in records:
            owner.claim(record)
        owner.release(waiting, wait=30)
        assert owner.complete(waiting, effect=False) is STALE
        for record in (forgotten, taken):
            assert owner.complete(record, effect=False) is KEPT
            assert owner.complete(record, effect=False) is ALREADY_DONE
            other.store.forget([record])
        other.claim(taken)
        for record in (forgotten, taken, new_record()):
            assert owner.complete(record, effect=False) is STALE
        assert other.claim(forgotten) == Verdict(FRESH, 1)
        assert other.complete(taken) is KEPT
