"""Claims and waits of a store whose clock is set back last no longer than they were meant to."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import psycopg
import pytest

from chaos.faults.redis_clock import RedisByClock
from servers import Guard
from worker.dedup.base import Answer, StoreOptions
from worker.dedup.memory import Memory, MemoryStore
from worker.dedup.open import open_store
from worker.testing.dedup_peer import Peer, new_record

TTL = 30.0
OPTIONS = StoreOptions(claim_ttl=TTL)
HOUR = 3600.0
#: A claim is forgotten long after it ended.
SECOND = 1.0


class Place(NamedTuple):
    """A store that two peers share, and its clock."""

    owner: Peer
    other: Peer
    #: The clock is ahead by so many seconds while the block runs.
    ahead: Callable[[float], AbstractContextManager[None]]


@pytest.fixture
def memory() -> Place:
    clock = [0.0]

    @contextmanager
    def ahead(seconds: float) -> Iterator[None]:
        clock[0] += seconds
        yield
        clock[0] -= seconds

    shared = Memory()
    stores = [MemoryStore(OPTIONS, lambda: time.monotonic() + clock[0], shared) for _ in range(2)]
    return Place(Peer(stores[0]), Peer(stores[1]), ahead)


@pytest.fixture
def sqlite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    @contextmanager
    def ahead(seconds: float) -> Iterator[None]:
        with monkeypatch.context() as patched:
            now = f"SELECT (julianday('now') - 2440587.5) * 86400.0 + {seconds}"
            patched.setattr("worker.dedup.sqlite._NOW", now)
            yield

    url = f"sqlite:///{tmp_path}/dedup.db"
    with closing(open_store(url, OPTIONS)) as one, closing(open_store(url, OPTIONS)) as two:
        yield Place(Peer(one), Peer(two), ahead)


@pytest.fixture
def redis(tmp_path: Path, server_guard: Guard) -> Iterator[Place]:
    with (
        RedisByClock(tmp_path, server_guard) as server,
        closing(open_store(server.url, OPTIONS)) as one,
        closing(open_store(server.url, OPTIONS)) as two,
    ):
        yield Place(Peer(one), Peer(two), server.clock.stepped)


@pytest.fixture
def postgres(postgres_url: str) -> Iterator[Place]:
    """A server's clock cannot be set, so another one hides it from whoever asks."""
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        admin.execute(
            """CREATE SCHEMA skewed;
            CREATE TABLE skewed.clock AS SELECT 0.0::float8 AS ahead;
            CREATE FUNCTION skewed.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS
                'SELECT pg_catalog.clock_timestamp() + make_interval(secs => ahead)
                FROM skewed.clock'"""
        )

        @contextmanager
        def ahead(seconds: float) -> Iterator[None]:
            admin.execute("UPDATE skewed.clock SET ahead = %s", (seconds,))
            yield
            admin.execute("UPDATE skewed.clock SET ahead = 0")

        url = f"{postgres_url}?options=-csearch_path%3Dskewed,pg_catalog"
        with closing(open_store(url, OPTIONS)) as one, closing(open_store(url, OPTIONS)) as two:
            yield Place(Peer(one), Peer(two), ahead)


@pytest.fixture(params=["memory", "sqlite", "redis", "postgres"])
def place(request: pytest.FixtureRequest) -> Place:
    made: Place = request.getfixturevalue(request.param)
    return made


def test_a_claim_is_not_busy_for_longer(place: Place) -> None:
    owner, other, record = place.owner, place.other, new_record()
    with place.ahead(HOUR):
        owner.claim(record)
        assert other.claim(record).answer is Answer.BUSY
    verdict = other.claim(record)
    assert verdict.answer is Answer.BUSY
    assert 0 < verdict.wait <= TTL

    with place.ahead(TTL + SECOND):
        assert other.claim(record).answer is Answer.SUSPECT


def test_a_wait_is_not_longer(place: Place) -> None:
    owner, other, record = place.owner, place.other, new_record()
    with place.ahead(HOUR):
        owner.claim(record)
        owner.release(record, wait=10)
    verdict = other.claim(record)
    assert verdict.answer is Answer.LATER
    assert 0 < verdict.wait <= 10.001

    with place.ahead(10 + SECOND):
        assert other.claim(record).answer is Answer.FRESH


def test_its_owner_renews_it(place: Place) -> None:
    owner, other, record = place.owner, place.other, new_record()
    with place.ahead(HOUR):
        owner.claim(record)
    other.claim(record)
    with place.ahead(TTL / 2):
        owner.renew(record)
    with place.ahead(TTL + SECOND):
        assert other.claim(record).answer is Answer.BUSY
        owner.complete(record)
    assert other.claim(record).answer is Answer.DUPLICATE
