"""The PostgreSQL store against a real server: what it leaves in it, and what it does without it."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from random import Random
from urllib.parse import quote

import psycopg
import pytest
from psycopg.sql import SQL, Identifier

from contract.insisting import insist
from servers import PostgreSQL
from waiting import until
from worker.dedup.base import (
    RECORD_BYTES,
    Answer,
    Batch,
    Claim,
    Complete,
    DedupStore,
    Release,
    StoreOptions,
    Verdict,
)
from worker.dedup.postgres import PostgresStore
from worker.errors import ConfigurationError, DedupUnavailable

OPTIONS = StoreOptions()
TOKEN, OTHER = b"owner-01\0\0\0\1", b"another-0001"
FRESH, DUPLICATE = Verdict(Answer.FRESH, 1), Verdict(Answer.DUPLICATE)
DAY = 86400

Open = Callable[..., PostgresStore]
Admin = psycopg.Connection[tuple[object, ...]]


@pytest.fixture
def open_store(postgres_url: str) -> Iterator[Open]:
    """Opens the test's database, as often as it likes; the first argument adds URL options."""
    opened = []

    def open_one(query: str = "", options: StoreOptions = OPTIONS) -> PostgresStore:
        opened.append(PostgresStore.open(postgres_url + query, options))
        return opened[-1]

    yield open_one
    for store in opened:
        store.close()


@pytest.fixture
def admin(postgres_url: str) -> Iterator[Admin]:
    """A connection of the test's own, as the owner of the server."""
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        yield connection


@contextmanager
def role(admin: Admin, name: str) -> Iterator[None]:
    """A user of the server, which all databases of it share."""
    admin.execute(SQL("CREATE ROLE {} LOGIN").format(Identifier(name)))
    try:
        yield
    finally:
        admin.execute(SQL("DROP OWNED BY {}").format(Identifier(name)))
        admin.execute(SQL("DROP ROLE {}").format(Identifier(name)))


def claim(store: DedupStore, record: bytes, token: bytes = TOKEN) -> Verdict:
    return store.apply(Batch(claims=[Claim(record, token, b"body")])).claims[0]


def complete(store: DedupStore, *records: bytes) -> list[Answer]:
    return store.apply(
        Batch(completes=[Complete(record, TOKEN, b"body") for record in records])
    ).completes


def new_record() -> bytes:
    return os.urandom(RECORD_BYTES)


def count(admin: Admin, table: str) -> object:
    found = admin.execute(SQL("SELECT count(*) FROM {}").format(Identifier(table))).fetchone()
    assert found is not None
    return found[0]


def partitions(admin: Admin) -> list[str]:
    rows = admin.execute(
        "SELECT inhrelid::regclass::text FROM pg_inherits"
        " WHERE inhparent = 'qworker_dedup_done'::regclass ORDER BY 1"
    )
    return [str(name) for (name,) in rows]


def bounds(partition: str) -> tuple[int, int]:
    *_, lower, upper = partition.split("_")
    return int(lower), int(upper)


# What it leaves in the server


def test_nothing_is_held_once_all_is_done_or_untouched(open_store: Open, admin: Admin) -> None:
    store, records = open_store(), [new_record() for _ in range(50)]
    for record in records:
        claim(store, record)
    complete(store, *records)
    for record in records:
        claim(store, record)
    store.apply(Batch(releases=[Release(record, TOKEN) for record in records]))
    complete(store, *records)
    given_back = new_record()
    claim(store, given_back)
    store.apply(Batch(releases=[Release(given_back, TOKEN, refund=True)]))
    store.forget([new_record()])
    assert (count(admin, "qworker_dedup_held"), count(admin, "qworker_dedup_done")) == (0, 50)


def test_an_id_lies_where_it_may_be_forgotten(open_store: Open, admin: Admin) -> None:
    store, began = open_store(), time.time()
    complete(store, new_record())
    (name,) = (name for name in partitions(admin) if count(admin, name))
    lower, upper = bounds(name)
    ((expires,),) = admin.execute("SELECT expires FROM qworker_dedup_done")
    assert isinstance(expires, int)
    assert lower <= expires < upper
    assert began <= expires - OPTIONS.retention <= time.time() + 2


def test_users_with_any_retention_share_the_ids(open_store: Open, admin: Admin) -> None:
    stores = [
        open_store(options=StoreOptions(retention=days * DAY)) for days in (30, 0.1, 7, 90, 1)
    ]
    records = [new_record() for _ in stores]
    for store, record in zip(stores, records, strict=True):
        assert complete(store, record) == [Answer.KEPT]
    for store in stores:
        assert [claim(store, record) for record in records] == [DUPLICATE] * len(records)
    spans = sorted(map(bounds, partitions(admin)))
    assert all(upper <= lower for (_, upper), (lower, _) in pairwise(spans))
    assert len(spans) <= 3 * len(stores)


def test_what_may_be_forgotten_is_dropped_as_a_whole_and_nothing_else_is(
    open_store: Open, admin: Admin
) -> None:
    store = open_store(options=StoreOptions(retention=DAY))
    complete(store, new_record())
    now = int(time.time())
    made = {
        "past": (now - 3 * DAY, now - 2 * DAY),
        "just_now": (now - DAY, now - 60),  # the clock may be wrong, and be set back
        "lasting": (now - 30, now + 30),
    }
    for name, (lower, upper) in made.items():
        admin.execute(
            SQL("CREATE TABLE {} PARTITION OF qworker_dedup_done FOR VALUES FROM ({}) TO ({})")
            .format(Identifier(name), lower, upper)
        )  # fmt: skip
    before = partitions(admin)

    open_store(options=StoreOptions(retention=60))

    gone = set(before) - set(partitions(admin))
    assert gone == {"past"}


def test_old_partitions_that_are_in_use_are_dropped_later_and_keep_nobody_waiting(
    open_store: Open, admin: Admin
) -> None:
    store = open_store()
    admin.execute("CREATE TABLE past PARTITION OF qworker_dedup_done FOR VALUES FROM (1) TO (2)")
    with admin.transaction():
        admin.execute("LOCK TABLE qworker_dedup_done IN ACCESS SHARE MODE")
        began = time.monotonic()
        open_store()
        assert time.monotonic() - began < OPTIONS.timeout
        assert claim(store, new_record()) == FRESH
    assert "past" in partitions(admin)
    open_store()
    assert "past" not in partitions(admin)


def test_room_is_made_ahead_of_time_where_that_keeps_nobody_waiting(
    open_store: Open, admin: Admin
) -> None:
    open_store()
    for name in partitions(admin):
        admin.execute(SQL("DROP TABLE {}").format(Identifier(name)))
    due = int(time.time() + OPTIONS.retention)
    admin.execute(
        SQL(
            "CREATE TABLE last PARTITION OF qworker_dedup_done FOR VALUES FROM ({}) TO ({})"
        ).format(due - 60, due + 3600)
    )
    with admin.transaction():
        admin.execute("LOCK TABLE qworker_dedup_done IN SHARE UPDATE EXCLUSIVE MODE")
        began = time.monotonic()
        store = open_store()
        assert complete(store, new_record()) == [Answer.KEPT]
        assert time.monotonic() - began < OPTIONS.timeout
    assert partitions(admin) == ["last"]
    open_store()
    assert len(partitions(admin)) == 2


def test_room_that_is_missing_is_made_in_the_midst_of_a_batch(
    open_store: Open, admin: Admin
) -> None:
    store, records = open_store(), [new_record() for _ in range(3)]
    claim(store, records[0])
    for name in partitions(admin):
        admin.execute(SQL("DROP TABLE {}").format(Identifier(name)))
    answers = store.apply(
        Batch(
            completes=[Complete(record, TOKEN, b"body") for record in records[:2]],
            claims=[Claim(records[2], TOKEN, b"body")],
        )
    )
    assert (answers.completes, answers.claims) == ([Answer.KEPT] * 2, [FRESH])
    assert claim(store, records[0]) == DUPLICATE


def test_room_is_made_under_load_and_nobody_waits_for_it(open_store: Open, admin: Admin) -> None:
    """A retention of a second needs a partition a second: many midnights in one test.

    Who had to wait for one would be told that the store is away.
    """
    options = StoreOptions(claim_ttl=60.0, retention=1.0)
    stores = [open_store(options=options) for _ in range(4)]
    enough = time.monotonic() + 3.5

    def work(store: PostgresStore) -> int:
        batches = 0
        while time.monotonic() < enough:
            records = [new_record() for _ in range(20)]
            began = time.monotonic()
            claims = [Claim(record, TOKEN, b"body") for record in records]
            assert store.apply(Batch(claims=claims)).claims == [FRESH] * 20
            assert complete(store, *records) == [Answer.KEPT] * 20
            if time.monotonic() - began < options.retention:
                assert store.apply(Batch(claims=claims)).claims == [DUPLICATE] * 20
            batches += 1
        return batches

    with ThreadPoolExecutor(len(stores)) as pool:
        assert all(pool.map(work, stores))
    assert count(admin, "qworker_dedup_held") == 0
    assert len(partitions(admin)) < 8


def test_what_was_given_back_long_ago_leaves_the_table(open_store: Open, admin: Admin) -> None:
    store = open_store()
    old, young, in_use = (new_record() for _ in range(3))
    for record in (old, young, in_use):
        claim(store, record)
    admin.execute(
        "UPDATE qworker_dedup_held SET deadline = deadline - memory - 60 WHERE record <> %s",
        (young,),
    )
    with admin.transaction():
        admin.execute("SELECT 1 FROM qworker_dedup_held WHERE record = %s FOR UPDATE", (in_use,))
        open_store()
    assert count(admin, "qworker_dedup_held") == 2
    assert claim(store, young, OTHER).answer is Answer.BUSY


def test_a_claim_is_kept_in_mind_for_as_long_as_its_own_service_wants(
    open_store: Open, admin: Admin
) -> None:
    lasting, record = open_store(options=StoreOptions(retention=30 * DAY)), new_record()
    claim(lasting, record)
    admin.execute("UPDATE qworker_dedup_held SET deadline = deadline - %s", (20 * DAY,))
    brief = open_store(options=StoreOptions(retention=60))
    for store in (brief, lasting):
        assert claim(store, record, OTHER) == Verdict(Answer.SUSPECT, 1)


# Many at once


def test_batches_of_the_same_records_in_any_order_never_deadlock(open_store: Open) -> None:
    records = [new_record() for _ in range(60)]
    stores = [open_store() for _ in range(4)]

    def mix(number: int) -> int:
        random, own = Random(number), bytes([number]) * 12
        fresh = 0
        for _ in range(60):
            chosen = random.sample(records, 40)
            batch = Batch(
                completes=[Complete(r, own, b"body", effect=False) for r in chosen[:5]],
                releases=[Release(r, own) for r in chosen[5:15]],
                claims=[Claim(r, own, b"body", solo=True) for r in chosen[15:]],
            )
            verdicts = stores[number].apply(batch).claims
            fresh += sum(verdict.answer is Answer.FRESH for verdict in verdicts)
            stores[number].forget(random.sample(records, 10))
        return fresh

    with ThreadPoolExecutor(len(stores)) as pool:
        assert all(pool.map(mix, range(len(stores))))


def test_a_batch_needs_nobody_to_end_it(open_store: Open, admin: Admin) -> None:
    store, other, records = open_store(), open_store(), [new_record() for _ in range(500)]
    claims = [Claim(record, TOKEN, b"body") for record in records]
    finish = store.begin(Batch(claims=claims))
    until(lambda: count(admin, "qworker_dedup_held") == 500)
    assert claim(other, records[0], OTHER).answer is Answer.BUSY
    assert finish().claims == [FRESH] * 500


# Without the server


def test_ids_survive_a_restart_of_the_server(open_store: Open, postgres: PostgreSQL) -> None:
    store, done, claimed = open_store(), new_record(), new_record()
    complete(store, done)
    claim(store, claimed)
    postgres.restart()
    with pytest.raises(DedupUnavailable):
        claim(store, done)
    assert claim(store, done) == DUPLICATE
    assert claim(store, claimed, OTHER).answer is Answer.BUSY


def test_a_server_that_is_gone_is_told_at_once_and_found_again(
    open_store: Open, postgres: PostgreSQL
) -> None:
    store, record = open_store(), new_record()
    claim(store, record)
    postgres.kill()
    for _ in range(3):
        began = time.monotonic()
        with pytest.raises(DedupUnavailable, match="dedup store postgresql://"):
            complete(store, record)
        assert time.monotonic() - began < OPTIONS.timeout
    with pytest.raises(DedupUnavailable):
        store.parked("bank")
    with pytest.raises(DedupUnavailable):
        open_store()
    postgres.start()
    assert complete(store, record) == [Answer.KEPT]


def test_a_server_that_is_killed_under_load_contradicts_nothing_that_it_said(
    open_store: Open, postgres: PostgreSQL, postgres_url: str
) -> None:
    """Each batch is sent until it is answered. No claim is granted to two, nothing done is lost."""
    records = [new_record() for _ in range(3000)]
    stores = [open_store() for _ in range(3)]
    won: list[list[bytes]] = [[] for _ in stores]
    progress = [0] * len(stores)

    def work(number: int) -> None:
        own = bytes([number + 1]) * 12
        finished: list[bytes] = []
        for at in range(0, len(records), 10):
            chosen = records[at : at + 10]
            batch = Batch(
                completes=[Complete(record, own, b"body") for record in finished],
                claims=[Claim(record, own, b"body") for record in chosen],
            )
            verdicts = insist(partial(stores[number].apply, batch)).claims
            pairs = zip(chosen, verdicts, strict=True)
            finished = [record for record, verdict in pairs if verdict.answer is Answer.FRESH]
            won[number] += finished
            progress[number] = at
        last = Batch(completes=[Complete(record, own, b"body") for record in finished])
        insist(partial(stores[number].apply, last))

    def has_come_so_far(at: int) -> bool:
        return max(progress) > at

    with ThreadPoolExecutor(len(stores)) as pool:
        working = [pool.submit(work, number) for number in range(len(stores))]
        for share in (1, 2):
            until(partial(has_come_so_far, len(records) * share // 4))
            postgres.kill()
            postgres.start()
        for future in working:
            future.result()
    assert sorted(record for mine in won for record in mine) == sorted(records)
    store = open_store()
    assert {claim(store, record) for record in records} == {DUPLICATE}


def test_a_server_that_hangs_is_told_within_the_timeout(
    open_store: Open, postgres: PostgreSQL
) -> None:
    store, records = open_store(), [new_record() for _ in range(3)]
    claim(store, records[0])
    with postgres.standing_still():
        for record in records[1:]:
            began = time.monotonic()
            with pytest.raises(DedupUnavailable, match="time"):
                claim(store, record)
            assert OPTIONS.timeout * 0.9 < time.monotonic() - began < 2 * OPTIONS.timeout
    # Each answer belongs to its own question, although the server got one of them late.
    assert insist(partial(complete, store, records[0])) == [Answer.KEPT]
    assert [claim(store, record).answer for record in records] == [
        Answer.DUPLICATE, *[Answer.FRESH] * 2
    ]  # fmt: skip


@pytest.mark.parametrize("number", ["its own", "a pooler's"])
def test_what_was_sent_before_never_happens_after_it_was_sent_again(
    open_store: Open, admin: Admin, number: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if number == "a pooler's":  # PgBouncer makes one up
        monkeypatch.setattr(psycopg.ConnectionInfo, "backend_pid", 1_234_567_890)
    store, record = open_store(options=StoreOptions(timeout=1.0)), new_record()
    sessions = (
        "SELECT pid FROM pg_stat_activity"
        " WHERE application_name = 'qworker dedup' AND datname = current_database()"
    )
    ((session,),) = admin.execute(sessions)
    assert isinstance(session, int)
    os.kill(session, signal.SIGSTOP)  # with the batch on its way to it
    try:
        with pytest.raises(DedupUnavailable, match="timeout"):
            claim(store, record)
        with pytest.raises(DedupUnavailable, match="does not end"):
            claim(store, record)
    finally:
        os.kill(session, signal.SIGCONT)
    assert insist(partial(claim, store, record)) == FRESH
    store.apply(Batch(releases=[Release(record, TOKEN)]))
    assert len(admin.execute(sessions).fetchall()) == 1
    assert claim(store, record, OTHER) == Verdict(Answer.FRESH, 2)


def test_a_session_that_ends_in_the_midst_of_a_batch_did_nothing_of_it(
    open_store: Open, admin: Admin
) -> None:
    store, records = open_store(), [new_record() for _ in range(2)]
    claim(store, records[0])
    batch = Batch(
        completes=[Complete(records[0], TOKEN, b"body")], claims=[Claim(records[1], TOKEN, b"body")]
    )
    with admin.transaction():
        admin.execute("SELECT 1 FROM qworker_dedup_held FOR UPDATE")
        finish = store.begin(batch)
        ((ended,),) = admin.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE application_name = 'qworker dedup' AND datname = current_database()"
        )
        assert ended
    with pytest.raises(DedupUnavailable):
        finish()
    again = store.apply(batch)
    assert (again.completes, again.claims) == ([Answer.KEPT], [FRESH])


def test_a_batch_whose_answer_was_lost_is_answered_as_what_it_is_by_now(
    open_store: Open, admin: Admin
) -> None:
    store, records = open_store(), [new_record() for _ in range(3)]
    claim(store, records[0])
    batch = Batch(
        completes=[Complete(record, TOKEN, b"body") for record in records[:2]],
        claims=[Claim(records[2], TOKEN, b"body")],
    )
    store.begin(batch)
    until(lambda: count(admin, "qworker_dedup_done") == 2)
    store.close()
    again = store.apply(batch)
    assert (again.completes, again.claims) == ([Answer.ALREADY_DONE] * 2, [FRESH])


def test_a_server_that_cannot_write_now_is_waited_for(open_store: Open, admin: Admin) -> None:
    store = open_store()
    admin.execute("ALTER ROLE CURRENT_USER SET default_transaction_read_only = on")
    try:
        store.close()
        with pytest.raises(DedupUnavailable, match="read-only"):
            claim(store, new_record())
    finally:
        admin.execute("SET default_transaction_read_only = off")
        admin.execute("ALTER ROLE CURRENT_USER RESET default_transaction_read_only")
    assert claim(store, new_record()) == FRESH


def test_a_database_that_was_emptied_is_laid_out_again(open_store: Open, admin: Admin) -> None:
    store = open_store()
    admin.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    with pytest.raises(DedupUnavailable, match="does not exist"):
        claim(store, new_record())
    assert claim(store, new_record()) == FRESH


# Who may do what, and where


def test_a_layout_of_another_version_is_refused(open_store: Open, admin: Admin) -> None:
    open_store()
    admin.execute("UPDATE qworker_dedup_meta SET value = '9'")
    with pytest.raises(ConfigurationError, match="layout is version 9"):
        open_store()


def test_a_batch_of_a_wrong_shape_is_refused_before_it_is_sent(open_store: Open) -> None:
    store, record = open_store(), new_record()
    with pytest.raises(ValueError, match="wrong length"):
        claim(store, record[1:])
    assert claim(store, record) == FRESH


def test_a_user_who_may_not_create_tables_is_a_mistake_in_the_settings(
    postgres_url: str, admin: Admin
) -> None:
    url = postgres_url.replace("qworker@", "reader:se%25cret@")
    with role(admin, "reader"):
        admin.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        with pytest.raises(ConfigurationError, match="permission denied") as told:
            PostgresStore.open(url, OPTIONS)
    assert "cret" not in str(told.value)
    assert "//reader:***@" in str(told.value)


def test_rights_that_are_withdrawn_later_are_waited_for(
    open_store: Open, postgres_url: str, admin: Admin
) -> None:
    open_store()
    url = postgres_url.replace("qworker@", "clerk@")
    with role(admin, "clerk"):
        admin.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO clerk")
        store = PostgresStore.open(url, OPTIONS)
        assert "cannot make the next partition" in store.warnings()[-1]
        admin.execute("REVOKE ALL ON ALL TABLES IN SCHEMA public FROM clerk")
        with pytest.raises(DedupUnavailable, match="permission denied"):
            claim(store, new_record())
        admin.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO clerk")
        assert claim(store, new_record()) == FRESH
        store.close()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (("qworker@", "nobody:se%25cret@"), 'role "nobody" does not exist'),
        (("/test_", "/nowhere_"), "does not exist"),
        (("qworker@", "qworker:cr/et@"), "URL cannot be read"),
        (("qworker@", "qworker:%cret@"), "URL cannot be read"),
        (("/test_", "/test_?slots=4096&x="), 'invalid URI query parameter: "slots"'),
        (("/test_", "/test_?sslmode=perhaps&application_name="), "invalid sslmode"),
    ],
)
def test_a_url_that_cannot_be_meant_is_a_mistake_in_the_settings(
    postgres_url: str, change: tuple[str, str], text: str
) -> None:
    with pytest.raises(ConfigurationError, match=text) as told:
        PostgresStore.open(postgres_url.replace(*change), OPTIONS)
    assert not re.search("cret|cr/|et@", str(told.value))


def test_a_schema_of_any_name_has_a_memory_of_its_own(open_store: Open, admin: Admin) -> None:
    record, name = new_record(), 'o\'dd "one"; --'
    admin.execute(SQL("CREATE SCHEMA {}").format(Identifier(name)))
    path = Identifier(name).as_string().replace(" ", r"\ ")
    there = f"?options={quote(f'-c search_path={path}')}"
    store = open_store(there)
    assert complete(store, record) == [Answer.KEPT]
    assert claim(open_store(), record) == FRESH
    assert claim(store, record) == DUPLICATE

    past = Identifier(name, "past")
    parent = Identifier(name, "qworker_dedup_done")
    admin.execute(
        SQL("CREATE TABLE {} PARTITION OF {} FOR VALUES FROM (1) TO (2)").format(past, parent)
    )
    open_store(there)
    assert admin.execute("SELECT 1 FROM pg_class WHERE relname = 'past'").fetchone() is None


def test_settings_that_make_it_forget_are_warned_of(open_store: Open) -> None:
    (fsync,) = open_store().warnings()
    assert "fsync" in fsync  # servers of tests keep what the kernel keeps
    _, commit = open_store("?options=-csynchronous_commit%3Doff").warnings()
    assert "synchronous_commit" in commit
