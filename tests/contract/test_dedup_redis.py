"""The Redis store against a real server: what it leaves in it, and what it does without it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from servers import Guard, Redis
from waiting import until
from worker.dedup.base import (
    RECORD_BYTES,
    Answer,
    Batch,
    Claim,
    Complete,
    DedupStore,
    StoreOptions,
    Verdict,
    record_ids,
)
from worker.dedup.redis import RedisStore
from worker.errors import ConfigurationError, DedupUnavailable, StoreCorrupt
from worker.ids import new_id

OPTIONS = StoreOptions(timeout=0.5)
TOKEN = b"owner-01\0\0\0\1"
FRESH, DUPLICATE = Verdict(Answer.FRESH, 1), Verdict(Answer.DUPLICATE)

Open = Callable[..., RedisStore]


@pytest.fixture
def open_store(redis_url: str) -> Iterator[Open]:
    """Opens the test's database, as often as it likes; the first argument adds URL options."""
    opened = []

    def open_one(query: str = "", options: StoreOptions = OPTIONS) -> RedisStore:
        opened.append(RedisStore.open(redis_url + query, options))
        return opened[-1]

    yield open_one
    for store in opened:
        store.close()


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


@contextmanager
def configured(client: redis.Redis, name: str, value: str) -> Iterator[None]:
    """The server with another setting for a while; it is shared with the other tests."""
    before = client.config_get(name)[name] or ""
    client.config_set(name, value)
    try:
        yield
    finally:
        client.config_set(name, before)


@contextmanager
def user(client: redis.Redis, rules: str) -> Iterator[str]:
    """A user of the server, as the beginning of a URL's network part."""
    client.acl_setuser("qw", enabled=True, passwords="+se%cret", keys="*", commands=rules.split())
    try:
        yield "qw:se%25cret@"
    finally:
        client.acl_deluser("qw")


def claim(store: DedupStore, record: bytes, token: bytes = TOKEN) -> Verdict:
    return store.apply(Batch(claims=[Claim(record, token, b"body")])).claims[0]


def complete(store: DedupStore, *records: bytes) -> list[Answer]:
    return store.apply(
        Batch(completes=[Complete(record, TOKEN, b"body") for record in records])
    ).completes


def new_record() -> bytes:
    return os.urandom(RECORD_BYTES)


def timed_record() -> bytes:
    """Return the record of an id that was made at the same moment as all others."""
    return record_ids("bank.work")(new_id(1_796_000_000))


# What it leaves in the server


@pytest.mark.parametrize("new", [new_record, timed_record])
def test_done_ids_take_few_bytes_each(
    open_store: Open, client: redis.Redis, new: Callable[[], bytes]
) -> None:
    store, ids = open_store("?slots=4096"), 240_000
    before = client.info("memory")["used_memory"]
    for _ in range(0, ids, 2000):
        complete(store, *(new() for _ in range(2000)))
    assert (client.info("memory")["used_memory"] - before) / ids <= 25
    (key,) = (key for key in client.scan_iter("*{aa}*", _type="hash"))
    assert client.object("encoding", key) == b"listpack"


def test_everything_but_the_layout_and_parked_keys_expires(
    open_store: Open, client: redis.Redis
) -> None:
    store = open_store(options=StoreOptions(claim_ttl=60, retention=3600))
    done, idle = new_record(), new_record()
    complete(store, done)
    claim(store, idle)
    store.mark_parked("bank", "key", 1)
    life = {key: client.ttl(key) for key in client.scan_iter()}
    assert {key for key, ttl in life.items() if ttl == -1} == {
        b"qw:dedup:layout",
        b"qw:dedup:parked:bank",
    }
    (of_done,) = (ttl for key, ttl in life.items() if client.type(key) == b"hash" and ttl > 0)
    assert 3600 <= of_done <= 2 * 3600
    (of_held,) = (ttl for key, ttl in life.items() if client.type(key) == b"string" and ttl > 0)
    assert 86400 <= of_held <= 86400 + 60


def test_a_claim_is_gone_once_the_record_is_done_or_untouched(
    open_store: Open, client: redis.Redis
) -> None:
    store, record = open_store(), new_record()
    claim(store, record)
    complete(store, record)
    assert {client.type(key) for key in client.scan_iter("qw:dedup:{*")} == {b"hash"}


# Its script


def test_the_script_is_loaded_again_when_the_server_forgot_it(
    open_store: Open, client: redis.Redis
) -> None:
    store, record = open_store(), new_record()
    assert claim(store, record) == FRESH
    client.script_flush()
    assert complete(store, record) == [Answer.KEPT]
    client.script_flush()
    assert claim(store, record) == DUPLICATE


def test_a_batch_of_a_wrong_shape_is_refused_before_it_is_sent(open_store: Open) -> None:
    store, record = open_store(), new_record()
    with pytest.raises(ValueError, match="wrong length"):
        claim(store, record[1:])
    assert claim(store, record) == FRESH


def test_keys_of_somebody_else_under_the_prefix_are_told(
    open_store: Open, client: redis.Redis
) -> None:
    store, record = open_store(), new_record()
    claim(store, record)
    (key,) = client.scan_iter("qw:dedup:{*")
    client.delete(key)
    client.lpush(key, "a list")
    with pytest.raises(StoreCorrupt, match="WRONGTYPE"):
        claim(store, record)
    assert claim(store, new_record()) == FRESH


# Layout and clock


def test_a_longer_retention_finds_what_was_done_under_a_shorter_one(open_store: Open) -> None:
    short = open_store(options=StoreOptions(retention=100))
    long = open_store(options=StoreOptions(retention=450))
    records = [new_record() for _ in range(3)]
    complete(short, records[0])
    complete(long, records[1])
    assert claim(long, records[0]) == claim(short, records[1]) == DUPLICATE


def test_the_longest_retention_of_a_slot_decides_how_long_it_lives(
    open_store: Open, client: redis.Redis
) -> None:
    short = open_store("?slots=4096", StoreOptions(retention=100))
    long = open_store(options=StoreOptions(retention=450))
    record = new_record()
    complete(short, record)
    (key,) = client.scan_iter("qw:dedup:{*")
    assert client.ttl(key) <= 200
    complete(long, record[:7] + bytes(9))  # of the same slot
    assert client.ttl(key) >= 450


def test_a_layout_that_does_not_fit_is_refused(open_store: Open) -> None:
    open_store("?slots=4096", StoreOptions(retention=10))
    open_store(options=StoreOptions(retention=160))
    with pytest.raises(ConfigurationError, match=r"retention of 10 s.*another prefix"):
        open_store(options=StoreOptions(retention=170))
    with pytest.raises(ConfigurationError, match=r"slots=4096.*cannot serve slots=32768"):
        open_store("?slots=32768", StoreOptions(retention=10))
    open_store("?slots=32768&prefix=other:", StoreOptions(retention=170))


def test_a_layout_of_another_version_is_refused(open_store: Open, client: redis.Redis) -> None:
    client.set("qw:dedup:layout", "v9 trees")
    with pytest.raises(ConfigurationError, match=r"layout b'v9 trees' is not known"):
        open_store()


def test_ids_are_found_after_the_clock_of_the_server_stepped_back(
    open_store: Open, client: redis.Redis
) -> None:
    # Generation 0 ends in 100 s: near enough for another clock to have been in generation 1.
    store, record = open_store(options=StoreOptions(retention=time.time() + 100)), new_record()
    complete(store, record)
    (key,) = client.scan_iter("qw:dedup:{*")
    assert key.endswith(b"}0")
    client.rename(key, key.removesuffix(b"0") + b"1")
    assert claim(store, record) == DUPLICATE


# Without the server


def test_ids_survive_a_restart_of_the_server(open_store: Open, redis_server: Redis) -> None:
    store, done, claimed = open_store(), new_record(), new_record()
    complete(store, done)
    claim(store, claimed)
    redis_server.restart()
    with pytest.raises(DedupUnavailable):
        claim(store, done)
    assert claim(store, done) == DUPLICATE
    assert claim(store, claimed, b"another-0001").answer is Answer.BUSY


def test_a_server_that_is_gone_is_told_at_once_and_found_again(
    open_store: Open, redis_server: Redis
) -> None:
    store, record = open_store(), new_record()
    claim(store, record)
    redis_server.kill()
    for _ in range(3):
        begin = time.monotonic()
        with pytest.raises(DedupUnavailable):
            complete(store, record)
        assert time.monotonic() - begin < 2 * OPTIONS.timeout
    with pytest.raises(DedupUnavailable):
        store.parked("bank")
    with pytest.raises(DedupUnavailable):
        open_store()
    redis_server.start()
    assert complete(store, record) == [Answer.KEPT]


def test_a_server_that_hangs_is_told_within_the_timeout(
    open_store: Open, redis_server: Redis
) -> None:
    store, records = open_store(), [new_record() for _ in range(4)]
    claim(store, records[0])
    assert redis_server.pid
    os.kill(redis_server.pid, signal.SIGSTOP)
    try:
        for record in records[1:]:
            begin = time.monotonic()
            with pytest.raises(DedupUnavailable, match="Timeout"):
                claim(store, record)
            assert OPTIONS.timeout * 0.9 < time.monotonic() - begin < 2 * OPTIONS.timeout
    finally:
        os.kill(redis_server.pid, signal.SIGCONT)
    # Each answer belongs to its own question, although the server got all of them late.
    assert complete(store, records[0]) == [Answer.KEPT]
    assert [claim(store, record).answer for record in records] == [
        Answer.DUPLICATE, *[Answer.FRESH] * 3
    ]  # fmt: skip


def test_a_server_that_cannot_write_now_is_waited_for(
    open_store: Open, client: redis.Redis
) -> None:
    store = open_store()
    with configured(client, "maxmemory", "1"), pytest.raises(DedupUnavailable, match="maxmemory"):
        claim(store, new_record())
    assert claim(store, new_record()) == FRESH
    client.replicaof("127.0.0.1", "1")
    try:
        with pytest.raises(DedupUnavailable, match="read only replica"):
            claim(store, new_record())
    finally:
        client.replicaof("NO", "ONE")
    assert claim(store, new_record()) == FRESH


def test_a_server_that_runs_somebodys_long_script_is_waited_for(
    open_store: Open, client: redis.Redis, redis_url: str
) -> None:
    store = open_store()

    def run_for_ever() -> None:
        with redis.Redis.from_url(redis_url) as other, pytest.raises(redis.ResponseError):
            other.eval("while true do end", 0)

    def is_busy() -> bool:
        try:
            return not client.ping()
        except redis.ResponseError:
            return True

    with configured(client, "busy-reply-threshold", "10"):
        other = threading.Thread(target=run_for_ever)
        other.start()
        until(is_busy)
        with pytest.raises(DedupUnavailable, match="BUSY"):
            claim(store, new_record())
        client.script_kill()
        other.join()
    assert claim(store, new_record()) == FRESH


# Who may do what


def test_a_wrong_login_is_a_mistake_in_the_settings(redis_url: str, client: redis.Redis) -> None:
    with user(client, "+@all") as login:
        url = redis_url.replace("//", f"//{login}")
        RedisStore.open(url, OPTIONS).close()
        wrong = url.replace("se%25cret", "not-the-word")
        with pytest.raises(ConfigurationError) as told:
            RedisStore.open(wrong, OPTIONS)
    assert "not-the-word" not in str(told.value)
    assert "//qw:***@" in str(told.value)


def test_a_user_who_may_not_run_scripts_is_a_mistake_in_the_settings(
    redis_url: str, client: redis.Redis
) -> None:
    with (
        user(client, "+@all -@scripting") as login,
        pytest.raises(ConfigurationError, match="no permissions"),
    ):
        RedisStore.open(redis_url.replace("//", f"//{login}"), OPTIONS)


def test_a_login_that_is_withdrawn_later_is_waited_for(redis_url: str, client: redis.Redis) -> None:
    with user(client, "+@all") as login:
        store = RedisStore.open(redis_url.replace("//", f"//{login}"), OPTIONS)
        client.acl_setuser("qw", commands=["-@scripting"])
        with pytest.raises(DedupUnavailable) as told:
            claim(store, new_record())
        assert "se%" not in str(told.value)
        client.acl_setuser("qw", enabled=True, passwords="+se%cret", keys="*", commands=["+@all"])
        assert claim(store, new_record()) == FRESH
        store.close()


def test_an_evicting_server_is_refused(open_store: Open, client: redis.Redis) -> None:
    store = open_store()
    assert store.warnings() == []
    with (
        configured(client, "maxmemory-policy", "volatile-lru"),
        pytest.raises(ConfigurationError, match=r"volatile-lru.*noeviction"),
    ):
        store.warnings()


def test_a_server_without_persistence_is_warned_of(open_store: Open, client: redis.Redis) -> None:
    store = open_store()
    with configured(client, "appendonly", "no"):
        (warning,) = store.warnings()
    assert "appendonly" in warning


def test_settings_that_may_not_be_read_are_warned_of_loudly(
    redis_url: str, client: redis.Redis
) -> None:
    with user(client, "+@all -info -config") as login:
        store = RedisStore.open(redis_url.replace("//", f"//{login}"), OPTIONS)
        (warning,) = store.warnings()
        store.close()
    assert "MAKE SURE" in warning
    assert "cret" not in warning


def test_a_database_that_is_not_there_is_a_mistake_in_the_settings(redis_server: Redis) -> None:
    url = redis_server.url.removesuffix("/0") + "/99999"
    with pytest.raises(ConfigurationError, match="DB index"):
        RedisStore.open(url, OPTIONS)


def test_a_server_without_cluster_support_is_told_apart(redis_url: str) -> None:
    with pytest.raises(ConfigurationError, match="cluster support disabled"):
        RedisStore.open(redis_url.rpartition("/")[0] + "?cluster=1", OPTIONS)


class SocketRedis(Redis):
    """A Redis behind a socket file."""

    def command(self) -> Sequence[str | Path]:
        return [*super().command(), "--unixsocket", self.folder / "socket"]


def test_a_socket_file_is_an_address_too(tmp_path: Path, server_guard: Guard) -> None:
    with SocketRedis(tmp_path, server_guard):
        store, record = RedisStore.open(f"unix://{tmp_path}/socket?db=3", OPTIONS), new_record()
        assert claim(store, record) == FRESH
        store.close()
        store = RedisStore.open(f"unix://{tmp_path}/socket", OPTIONS)
        assert claim(store, record) == FRESH
        store.close()
