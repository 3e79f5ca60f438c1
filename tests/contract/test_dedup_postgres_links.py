"""The PostgreSQL store behind a link that is slow, holds what it was given, or loses answers."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from typing import NoReturn

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


def test_nothing_is_said_at_the_start_that_a_pooler_does_not_take() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:
        url = f"postgresql://user@127.0.0.1:{server.getsockname()[1]}/database"
        opening = pool.submit(
            PostgresStore.open, f"{url}?sslmode=disable&gssencmode=disable", OPTIONS
        )
        connection, _ = server.accept()
        with connection:
            words = connection.recv(4096)[8:].split(b"\0")
        with pytest.raises(DedupUnavailable):
            opening.result()
    assert {*words[::2]} - {b""} <= {b"user", b"database", b"application_name"}


def test_a_session_is_as_it_has_to_be_whatever_is_set_for_its_user(
    near: Peer, postgres_url: str
) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        admin.execute(
            """ALTER ROLE CURRENT_USER SET default_transaction_isolation = 'serializable';
            ALTER ROLE CURRENT_USER SET statement_timeout = 0;
            CREATE TABLE seen AS SELECT name, setting FROM pg_settings WHERE false;
            CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                INSERT INTO seen SELECT name, setting FROM pg_settings; RETURN NULL; END $$;
            CREATE TRIGGER look AFTER INSERT ON qworker_dedup_held EXECUTE FUNCTION look()"""
        )
        try:
            near.store.close()
            assert near.claim(new_record()) == Verdict(FRESH, 1)
        finally:
            admin.execute("ALTER ROLE CURRENT_USER RESET ALL")
        found: dict[str, str] = dict(admin.execute("SELECT name, setting FROM seen").fetchall())
    assert found["transaction_isolation"] == "read committed"
    assert found["statement_timeout"] == found["lock_timeout"] == "1350"
    assert found["idle_in_transaction_session_timeout"] == "1500"


# Where names are not looked up


def by_name(url: str) -> str:
    return url.replace("127.0.0.1", "localhost")


@contextmanager
def without_name_servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As the system's look-up is then: silent, for longer than anybody wants to wait."""
    back = threading.Event()

    def look_up(*_: object, **__: object) -> NoReturn:
        back.wait(5 * OPTIONS.timeout)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    with monkeypatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", look_up)
        yield
        back.set()


def test_name_servers_that_are_away_are_told_within_the_timeout(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with without_name_servers(monkeypatch):
        began = time.monotonic()
        with pytest.raises(DedupUnavailable, match="failed to resolve host 'localhost'"):
            PostgresStore.open(by_name(postgres_url), OPTIONS)
        assert time.monotonic() - began < 2 * OPTIONS.timeout


def test_a_server_is_found_again_while_the_name_servers_are_away(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        closing(PostgresStore.open(by_name(postgres_url), OPTIONS)) as store,
        without_name_servers(monkeypatch),
    ):
        store.close()
        began = time.monotonic()
        assert Peer(store).claim(new_record()) == Verdict(FRESH, 1)
        assert time.monotonic() - began < OPTIONS.timeout
