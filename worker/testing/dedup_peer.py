"""Peers of a dedup store, as its suite sees them: one life of a consumer process each."""
# ruff: noqa: S101, D102 - helpers of tests; their names say what they do

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from worker.dedup.base import (
    OWNER_BYTES,
    RECORD_BYTES,
    TOKEN_BYTES,
    Answer,
    Batch,
    Claim,
    Complete,
    Release,
    Renew,
    StoreOptions,
    Verdict,
    fingerprint,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from worker.dedup.base import DedupStore

FRESH, DUPLICATE, BUSY, CONFLICT = Answer.FRESH, Answer.DUPLICATE, Answer.BUSY, Answer.CONFLICT
SUSPECT, KEPT, STALE, ALREADY_DONE, LATER = (
    Answer.SUSPECT, Answer.KEPT, Answer.STALE, Answer.ALREADY_DONE, Answer.LATER,
)  # fmt: skip
PAYLOAD, OTHER_PAYLOAD = fingerprint(b"payload"), fingerprint(b"other payload")
#: Claims live longer than any test, unless it asks for SHORT ones to see them expire.
LONG, SHORT = StoreOptions(claim_ttl=3600.0, timeout=10.0), 0.2
PATIENCE = 20.0


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

    def complete(self, record: bytes, payload: bytes = PAYLOAD, *, effect: bool = True) -> Answer:
        completes = [Complete(record, self.token, payload, effect)]
        return self.store.apply(Batch(completes=completes)).completes[0]

    def release(self, record: bytes, *, refund: bool = False, wait: float = 0.0) -> Answer:
        releases = [Release(record, self.token, refund, wait)]
        return self.store.apply(Batch(releases=releases)).releases[0]

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
