"""A model of a dedup store, and random batches that compare a store with it."""
# ruff: noqa: S101, D102, FBT001 - a test; methods and arguments are those of the protocol

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from worker.dedup.base import (
    MOST_REVISION,
    NOBODY,
    OWNER_BYTES,
    Answer,
    Answers,
    Batch,
    Claim,
    Complete,
    Mark,
    Release,
    Renew,
    Verdict,
)
from worker.testing.dedup_peer import (
    ALREADY_DONE,
    BUSY,
    CONFLICT,
    DUPLICATE,
    FRESH,
    KEPT,
    LATER,
    OTHER_PAYLOAD,
    PAYLOAD,
    STALE,
    SUSPECT,
    new_record,
)

if TYPE_CHECKING:
    from collections.abc import Collection

    from worker.dedup.base import DedupStore


class Model:
    """The rules in the fewest words, without time: nothing expires."""

    def __init__(self) -> None:
        self.done: dict[bytes, bytes] = {}
        self.held: dict[bytes, tuple[bytes | None, int, int]] = {}
        self.parked: dict[str, int] = {}
        self.reached: dict[bytes, int] = {}

    def mark_parked(self, key: str, at: int) -> None:
        self.parked[key] = max(at, self.parked.get(key, 0))

    def unpark(self, key: str, upto: int) -> bool:
        if self.parked.get(key, upto + 1) > upto:
            return False
        del self.parked[key]
        return True

    def apply(self, batch: Batch) -> Answers:
        return Answers(
            [self.complete(*entry) for entry in batch.completes],
            [self.release(*entry) for entry in batch.releases],
            [
                KEPT if self.owner(entry.record) == entry.token else STALE
                for entry in batch.renewals
            ],
            [self.claim(*entry, batch.dead) for entry in batch.claims],
            self.revisions(batch),
        )

    def revisions(self, batch: Batch) -> tuple[int | None, ...]:
        for place, revision in batch.marks:
            self.reached[place] = max(revision, self.reached.get(place, 0))
        return tuple(map(self.reached.get, batch.looks))

    def forget(self, records: Collection[bytes]) -> set[bytes]:
        claimed = {record for record in records if self.owner(record) not in {None, NOBODY}}
        for record in {*records} - claimed:
            self.held.pop(record, None)
            self.done.pop(record, None)
        return claimed

    def owner(self, record: bytes) -> bytes | None:
        return self.held.get(record, (None, 0, 0))[0]

    def complete(self, record: bytes, token: bytes, payload: bytes, effect: bool) -> Answer:
        if record in self.done:
            return ALREADY_DONE
        if self.owner(record) not in ({None, NOBODY, token} if effect else {token}):
            return STALE
        self.held.pop(record, None)
        self.done[record] = payload
        return KEPT

    def release(self, record: bytes, token: bytes, refund: bool, wait: float) -> Answer:
        if self.owner(record) != token:
            return STALE
        _, attempts, crashes = self.held[record]
        if wait:
            self.held[record] = (NOBODY, attempts, crashes)
            return KEPT
        self.held[record] = (None, attempts - refund, crashes)
        return KEPT

    def claim(
        self,
        record: bytes,
        token: bytes,
        payload: bytes,
        solo: bool,
        dead: Collection[bytes],
    ) -> Verdict:
        if record in self.done:
            return Verdict(DUPLICATE if self.done[record] == payload else CONFLICT)
        owner, attempts, crashes = self.held.get(record, (None, 0, 0))
        if owner == NOBODY:
            return Verdict(LATER, attempts, crashes)
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


def compare_with_model(
    first: DedupStore, second: DedupStore, *, has_revisions: bool = True
) -> None:
    """Apply random batches over both connections; every answer must be the model's."""
    owners = [os.urandom(OWNER_BYTES) for _ in range(2)]
    # Few of each, so that they meet. The tokens are used again and again, as no caller would.
    tokens = st.sampled_from([owner + bytes([0, 0, 0, n]) for owner in owners for n in range(2)])
    payloads = st.sampled_from([PAYLOAD, OTHER_PAYLOAD])
    keys = st.sampled_from(["", "key"])
    # Those of one key: neighbours, and what a double, or a signed half, cannot tell apart.
    revisions = st.sampled_from([0, 1, 2, 2**31, 2**32, 2**53, 2**53 + 1, MOST_REVISION])
    numbers, flags, waits = st.integers(0, 3), st.booleans(), st.sampled_from([0.0, 3600.0])

    class Machine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.records = [new_record() for _ in range(4)]
            self.model = Model()
            self.batch = Batch()
            self.service = os.urandom(8).hex()

        @rule(
            completes=st.lists(st.tuples(numbers, tokens, payloads, flags), max_size=3),
            releases=st.lists(st.tuples(numbers, tokens, flags, waits), max_size=3),
            renewals=st.lists(st.tuples(numbers, tokens), max_size=3),
            claims=st.lists(st.tuples(numbers, tokens, payloads, flags), max_size=5),
            dead=st.sets(st.sampled_from(owners)),
            marks=st.lists(st.tuples(numbers, revisions), max_size=3 * has_revisions),
            looks=st.lists(numbers, max_size=3 * has_revisions),
            store=st.sampled_from([first, second]),
        )
        def apply(  # noqa: PLR0913, PLR0917 - the parts of a batch
            self,
            completes: list[tuple[int, bytes, bytes, bool]],
            releases: list[tuple[int, bytes, bool, float]],
            renewals: list[tuple[int, bytes]],
            claims: list[tuple[int, bytes, bytes, bool]],
            dead: set[bytes],
            marks: list[tuple[int, int]],
            looks: list[int],
            store: DedupStore,
        ) -> None:
            self.batch = Batch(
                [
                    Complete(self.records[n], t, payload, effect)
                    for n, t, payload, effect in completes
                ],
                [Release(self.records[n], t, refund, wait) for n, t, refund, wait in releases],
                [Renew(self.records[n], token) for n, token in renewals],
                [Claim(self.records[n], t, payload, solo) for n, t, payload, solo in claims],
                dead,
                [Mark(self.records[n], revision) for n, revision in marks],
                [self.records[n] for n in looks],
            )
            self.apply_again(store)

        @rule(store=st.sampled_from([first, second]))
        def apply_again(self, store: DedupStore) -> None:
            answers = store.apply(self.batch)
            for verdict in answers.claims:
                assert (verdict.wait > 0) is (verdict.answer in {BUSY, LATER})
            timeless = [verdict._replace(wait=0.0) for verdict in answers.claims]
            assert answers._replace(claims=timeless) == self.model.apply(self.batch)

        @rule(chosen=st.lists(numbers, max_size=3), store=st.sampled_from([first, second]))
        def forget(self, chosen: list[int], store: DedupStore) -> None:
            records = [self.records[n] for n in chosen]
            assert store.forget(records) == self.model.forget(records)

        @rule(key=keys, at=numbers, store=st.sampled_from([first, second]))
        def mark_parked(self, key: str, at: int, store: DedupStore) -> None:
            store.mark_parked(self.service, key, at)
            self.model.mark_parked(key, at)
            assert store.parked(self.service) == self.model.parked

        @rule(key=keys, upto=numbers, store=st.sampled_from([first, second]))
        def unpark(self, key: str, upto: int, store: DedupStore) -> None:
            assert store.unpark(self.service, key, upto) is self.model.unpark(key, upto)
            assert store.parked(self.service) == self.model.parked

    run_state_machine_as_test(
        Machine, settings=settings(max_examples=60, stateful_step_count=20, deadline=None)
    )
