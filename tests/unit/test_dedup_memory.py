"""The memory store by a clock that the test turns."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest

from worker.dedup.base import RECORD_BYTES, Answer, Batch, Claim, Complete, StoreOptions, Verdict
from worker.dedup.memory import Memory, MemoryStore
from worker.errors import ConfigurationError

OPTIONS = StoreOptions(claim_ttl=10.0, retention=100.0)
TOKEN, OTHER = b"owner-01\0\0\0\1", b"owner-02\0\0\0\1"
FRESH, DUPLICATE = Verdict(Answer.FRESH, 1), Verdict(Answer.DUPLICATE)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def memory() -> Memory:
    return Memory()


@pytest.fixture
def store(clock: Clock, memory: Memory) -> MemoryStore:
    return MemoryStore(OPTIONS, clock, memory)


def claim(
    store: MemoryStore, record: bytes, token: bytes = TOKEN, *, solo: bool = False
) -> Verdict:
    return store.apply(Batch(claims=[Claim(record, token, b"body", solo)])).claims[0]


def complete(store: MemoryStore, record: bytes) -> Answer:
    return store.apply(Batch(completes=[Complete(record, TOKEN, b"body")])).completes[0]


def new_record() -> bytes:
    return os.urandom(RECORD_BYTES)


def test_a_claim_is_busy_to_the_last_moment_and_then_a_suspect(
    store: MemoryStore, clock: Clock
) -> None:
    record = new_record()
    claim(store, record)
    clock.now += 9.75
    assert claim(store, record, OTHER) == Verdict(Answer.BUSY, 1, wait=0.25)
    clock.now += 0.25
    assert claim(store, record, OTHER) == Verdict(Answer.SUSPECT, 1)
    assert claim(store, record, OTHER, solo=True) == Verdict(Answer.FRESH, 2, crashes=1)


def test_a_done_id_is_known_for_the_retention_and_then_leaves_the_memory(
    store: MemoryStore, clock: Clock, memory: Memory
) -> None:
    records = [new_record() for _ in range(3)]
    for record in records:
        complete(store, record)
        clock.now += 1
    clock.now += 98.9  # the first is 101.9 seconds old, the last 99.9
    assert [claim(store, record).answer for record in records] == [
        Answer.FRESH, Answer.FRESH, Answer.DUPLICATE
    ]  # fmt: skip
    assert set(memory.records.done) == {records[2]}


def test_counts_are_kept_for_a_day_and_then_leave_the_memory(
    store: MemoryStore, clock: Clock, memory: Memory
) -> None:
    record = new_record()
    claim(store, record)
    clock.now += 10 + 86399
    assert claim(store, record, OTHER) == Verdict(Answer.SUSPECT, 1)
    clock.now += 1
    assert claim(store, record, OTHER) == FRESH
    clock.now += 2 * 86400
    store.apply(Batch())
    assert memory.records.held == {}


def test_a_claim_keeps_its_record_from_being_forgotten_for_as_long_as_it_is_known(
    store: MemoryStore, clock: Clock
) -> None:
    record = new_record()
    claim(store, record)
    clock.now += 10 + 86399
    assert store.forget([record]) == {record}
    clock.now += 1
    assert not store.forget([record])


def test_an_id_that_is_done_again_after_its_retention_is_known_again(
    store: MemoryStore, clock: Clock
) -> None:
    record = new_record()
    complete(store, record)
    clock.now += 101
    assert complete(store, record) is Answer.KEPT
    clock.now += 99
    assert claim(store, record) == DUPLICATE


def test_an_expired_id_behind_one_that_is_kept_longer_is_forgotten_in_time(
    clock: Clock, memory: Memory
) -> None:
    long, short = (
        MemoryStore(StoreOptions(retention=retention), clock, memory) for retention in (1000, 100)
    )
    records = [new_record() for _ in range(2)]
    complete(long, records[0])
    complete(short, records[1])
    clock.now += 100
    assert [claim(short, record) for record in records] == [DUPLICATE, FRESH]


def test_threads_share_one_handle(store: MemoryStore) -> None:
    records = [new_record() for _ in range(2000)]

    def race(number: int) -> int:
        claims = [Claim(record, bytes([number]) * 12, b"body") for record in records]
        verdicts = store.apply(Batch(claims=claims)).claims
        return sum(verdict.answer is Answer.FRESH for verdict in verdicts)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            assert sorted(pool.map(race, range(8))) == [0] * 7 + [2000]
    finally:
        sys.setswitchinterval(before)


def test_a_name_means_the_same_records_to_all_who_open_it() -> None:
    name, record = f"memory://{uuid4()}", new_record()
    first, second = MemoryStore.open(name, OPTIONS), MemoryStore.open(name, OPTIONS)
    complete(first, record)
    first.mark_parked("bank", "key", 1)
    first.close()
    assert claim(second, record) == DUPLICATE
    second.close()
    assert MemoryStore.open(name, OPTIONS).parked("bank") == {"key": 1}
    assert claim(MemoryStore.open(name + "2", OPTIONS), record) == FRESH


def test_stores_that_were_not_opened_by_name_know_nothing_of_each_other() -> None:
    record = new_record()
    complete(MemoryStore(OPTIONS), record)
    assert claim(MemoryStore(OPTIONS), record) == FRESH


def test_a_name_is_made_once_however_many_threads_ask_for_it() -> None:
    name = f"memory://{uuid4()}"

    def mark(number: int) -> None:
        MemoryStore.open(name, OPTIONS).mark_parked("bank", str(number), number)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(mark, range(100)))
    assert MemoryStore.open(name, OPTIONS).parked("bank") == {str(n): n for n in range(100)}


def test_what_parked_returns_is_the_callers_own(store: MemoryStore) -> None:
    store.mark_parked("bank", "key", 1)
    before = store.parked("bank")
    store.mark_parked("bank", "key", 2)
    assert before == {"key": 1}


@pytest.mark.parametrize("url", ["memory:", "memory://name?size=3", "sqlite:///file"])
def test_a_url_that_cannot_be_meant_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="memory://NAME"):
        MemoryStore.open(url, OPTIONS)
