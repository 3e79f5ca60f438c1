"""The Redis store on a cluster of two servers, while hash slots move between them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import pytest
import redis
from redis.crc import key_slot

from servers import Guard, Redis
from waiting import until
from worker.dedup.base import (
    RECORD_BYTES,
    Answer,
    Batch,
    Claim,
    Complete,
    StoreOptions,
    Verdict,
    record_ids,
)
from worker.dedup.redis import RedisStore
from worker.errors import DedupUnavailable
from worker.ids import new_id

TOKEN = b"owner-01\0\0\0\1"
ALL_SLOTS = 16384


class Node(Redis):
    """A server of a cluster, without hash slots at first."""

    def command(self) -> Sequence[str | Path]:
        options = {
            "cluster-enabled": "yes",
            "databases": "1",
            "cluster-node-timeout": "1000",
            "cluster-require-full-coverage": "no",
        }
        more = [word for name, value in options.items() for word in (f"--{name}", value)]
        return [*super().command(), *more]


class Cluster:
    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes = nodes
        self.clients = [redis.Redis(port=node.port) for node in nodes]
        half = ALL_SLOTS // 2
        for first, client in zip((0, half), self.clients, strict=True):
            client.cluster("addslotsrange", first, first + half - 1)
        for one, other in pairwise(nodes):
            self.clients[nodes.index(one)].cluster("meet", "127.0.0.1", other.port)
        until(self.is_up, 30)

    def is_up(self) -> bool:
        infos = [client.cluster("info") for client in self.clients]
        return all(
            (info["cluster_state"], info["cluster_known_nodes"]) == ("ok", "2") for info in infos
        )

    def begin_move(self, slot: int, source: int, target: int) -> None:
        names = [str(client.cluster("myid").decode()) for client in self.clients]
        self.clients[target].cluster("setslot", slot, "importing", names[source])
        self.clients[source].cluster("setslot", slot, "migrating", names[target])

    def end_move(self, slot: int, source: int, target: int) -> None:
        port = self.nodes[target].port
        while keys := self.clients[source].cluster("getkeysinslot", slot, 100):
            self.clients[source].migrate("127.0.0.1", port, keys, 0, 5000)
        name = self.clients[target].cluster("myid").decode()
        for client in (self.clients[target], self.clients[source]):
            client.cluster("setslot", slot, "node", name)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, server_guard: Guard) -> Iterator[Cluster]:
    with ExitStack() as stack:
        cluster = Cluster(
            [
                stack.enter_context(Node(tmp_path_factory.mktemp("node"), server_guard))
                for _ in range(2)
            ]
        )
        yield cluster
        for client in cluster.clients:
            client.close()


@pytest.fixture
def store(cluster: Cluster) -> Iterator[RedisStore]:
    # The layout is kept by the server that the URL does not name.
    prefixes = (f"{os.urandom(4).hex()}:" for _ in range(1000))
    prefix = next(p for p in prefixes if key_slot(f"{p}layout".encode()) >= ALL_SLOTS // 2)
    url = f"redis://127.0.0.1:{cluster.nodes[0].port}/?cluster=1&prefix={prefix}"
    store = RedisStore.open(url, StoreOptions(timeout=1.0))
    yield store
    store.close()


def claim_all(store: RedisStore, records: Sequence[bytes]) -> list[Verdict]:
    return store.apply(Batch(claims=[Claim(r, TOKEN, b"body") for r in records])).claims


def complete_all(store: RedisStore, records: Sequence[bytes]) -> list[Answer]:
    return store.apply(Batch(completes=[Complete(r, TOKEN, b"body") for r in records])).completes


def new_records(count: int) -> list[bytes]:
    return [os.urandom(RECORD_BYTES) for _ in range(count)]


def slot_of(cluster: Cluster, store: RedisStore, record: bytes) -> tuple[int, int]:
    """Return the hash slot of a held record, and the number of the server that has it."""
    claim_all(store, [record])
    for number, client in enumerate(cluster.clients):
        for key in client.scan_iter(match="*{*:*"):
            if key.endswith(record):
                return key_slot(key), number
    raise AssertionError(record)


@pytest.mark.parametrize("moment", [None, 1_796_000_000.0])
def test_one_batch_is_spread_over_the_servers(
    cluster: Cluster, store: RedisStore, moment: float | None
) -> None:
    """Also one of ids that were made at one moment."""
    records = new_records(500)
    if moment is not None:
        records = [record_ids("bank.work")(new_id(moment)) for _ in range(500)]
    assert claim_all(store, records) == [Verdict(Answer.FRESH, 1)] * 500
    assert min(client.dbsize() for client in cluster.clients) > 100
    assert complete_all(store, records[:250]) == [Answer.KEPT] * 250
    mixed = [verdict.answer for verdict in claim_all(store, records)]
    assert mixed == [Answer.DUPLICATE] * 250 + [Answer.FRESH] * 250
    store.mark_parked("bank", "key", 1)
    assert store.parked("bank") == {"key": 1}


def test_warnings_are_of_every_server(cluster: Cluster, store: RedisStore) -> None:
    assert store.warnings() == []
    cluster.clients[1].config_set("appendonly", "no")
    (warning,) = store.warnings()
    cluster.clients[1].config_set("appendonly", "yes")
    assert "appendonly" in warning


def test_ids_are_found_where_their_slot_has_moved(cluster: Cluster, store: RedisStore) -> None:
    (record,) = new_records(1)
    slot, source = slot_of(cluster, store, record)
    complete_all(store, [record])
    for server in cluster.clients:
        server.script_flush()
    cluster.begin_move(slot, source, 1 - source)
    cluster.end_move(slot, source, 1 - source)
    records = [record, *new_records(50)]
    first, *others = claim_all(store, records)
    assert first == Verdict(Answer.DUPLICATE)
    assert others == [Verdict(Answer.FRESH, 1)] * 50


def test_a_slot_on_the_move_is_waited_for(cluster: Cluster, store: RedisStore) -> None:
    (record,) = new_records(1)
    slot, source = slot_of(cluster, store, record)
    complete_all(store, [record])
    cluster.begin_move(slot, source, 1 - source)
    for _ in range(2):
        with pytest.raises(DedupUnavailable):
            claim_all(store, [record])
    assert len(claim_all(store, new_records(20))) == 20
    cluster.end_move(slot, source, 1 - source)
    assert claim_all(store, [record]) == [Verdict(Answer.DUPLICATE)]


def test_a_server_that_is_gone_is_told_and_the_others_serve(
    cluster: Cluster, store: RedisStore
) -> None:
    records = new_records(100)
    claim_all(store, records)
    (url_server, other), other_client = cluster.nodes, cluster.clients[1]
    elsewhere = [key[-RECORD_BYTES:] for key in other_client.scan_iter("*{*:*", count=10_000)]
    url_server.kill()
    with pytest.raises(DedupUnavailable):
        claim_all(store, records)
    assert other.pid
    there = [record for record in records if record in elsewhere]
    assert set(claim_all(store, there)) == {Verdict(Answer.FRESH, 1)}
    url_server.start()
    until(cluster.is_up, 30)
    assert set(claim_all(store, records)) == {Verdict(Answer.FRESH, 1)}
