"""The PostgreSQL store behind a link that is slow, holds what it was given, or loses answers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial

import psycopg
import pytest

from chaos.faults.proxy import Proxy
from contract.insisting import insist
from machines.network import Way
from waiting import until
from worker.dedup.base import Answer, Batch, Claim, StoreOptions, Verdict
from worker.dedup.postgres import PostgresStore
from worker.errors import DedupUnavailable
from worker.testing.dedup_peer import ALREADY_DONE, FRESH, KEPT, PAYLOAD, Peer, new_record

OPTIONS = StoreOptions(timeout=1.5)


@pytest.fixture
def link(postgres_url: str) -> Iterator[Proxy]:
    with closing(Proxy(postgres_url)) as made:
        yield made


@pytest.fixture
def peer(link: Proxy, postgres_url: str) -> Iterator[Peer]:
    """By way of the link."""
    with closing(PostgresStore.open(link.url_through(postgres_url), OPTIONS)) as store:
        yield Peer(store)


@pytest.fixture
def near(postgres_url: str) -> Iterator[Peer]:
    """Beside it."""
    with closing(PostgresStore.open(postgres_url, OPTIONS)) as store:
        yield Peer(store)


def sessions(url: str) -> int:
    with psycopg.connect(url) as admin:
        ((number,),) = admin.execute(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE application_name = 'qworker dedup' AND datname = current_database()"
        )
    return int(number)


def test_a_batch_of_which_some_arrived_keeps_nobody_waiting(
    link: Proxy, near: Peer, postgres_url: str
) -> None:
    """Who waited for the locks of another would be told before that one gives up."""
    patient = StoreOptions(timeout=20 * OPTIONS.timeout)
    peer = Peer(PostgresStore.open(link.url_through(postgres_url), patient))
    records = [new_record() for _ in range(10_000)]
    claims = Batch(claims=[Claim(record, peer.token, PAYLOAD) for record in records])
    with ThreadPoolExecutor(1) as pool:
        with link.limit(100_000.0, Way.TO):
            sending = pool.submit(peer.store.apply, claims)
            for record in records[:50]:
                assert near.claim(record) == Verdict(FRESH, 1)
                time.sleep(0.01)
            link.reset()
        with pytest.raises(DedupUnavailable):
            sending.result()
    answers = [verdict.answer for verdict in insist(partial(peer.store.apply, claims)).claims]
    assert answers == [Answer.BUSY] * 50 + [Answer.FRESH] * 9950
    peer.store.close()


def test_what_arrives_late_is_not_done_any_more(
    link: Proxy, peer: Peer, near: Peer, postgres_url: str
) -> None:
    record = new_record()
    with link.hold(Way.TO), pytest.raises(DedupUnavailable, match="timeout"):
        peer.claim(record)
    assert insist(partial(peer.claim, record)) == Verdict(FRESH, 1)
    assert peer.release(record) is KEPT
    until(lambda: sessions(postgres_url) == 2)
    assert near.claim(record) == Verdict(FRESH, 2)


def test_a_lost_answer_is_given_again(link: Proxy, peer: Peer, near: Peer) -> None:
    record = new_record()
    with link.cut(Way.FROM), pytest.raises(DedupUnavailable, match="timeout"):
        peer.claim(record)
    assert near.claim(record).answer is Answer.BUSY
    assert insist(partial(peer.claim, record)) == Verdict(FRESH, 1)
    with link.cut(Way.FROM), pytest.raises(DedupUnavailable, match="timeout"):
        peer.complete(record)
    assert near.claim(record).answer is Answer.DUPLICATE
    assert insist(partial(peer.complete, record)) is ALREADY_DONE
