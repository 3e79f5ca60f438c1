"""The SQLite store on a real file: several processes, crashes, and a disk that says no."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from threading import Barrier

import pytest

from waiting import until
from worker.dedup.base import (
    OWNER_BYTES,
    RECORD_BYTES,
    Answer,
    Batch,
    Claim,
    Complete,
    StoreOptions,
    Verdict,
    record_ids,
)
from worker.dedup.sqlite import SqliteStore
from worker.errors import ConfigurationError, DedupUnavailable
from worker.ids import new_id

OPTIONS = StoreOptions(timeout=0.2)
TOKEN = b"owner-01\0\0\0\1"
FRESH, DUPLICATE = Verdict(Answer.FRESH, 1), Verdict(Answer.DUPLICATE)

#: Completes and claims as fast as it can, and prints each record once the store has said KEPT.
WORKER = """
import os, sys
from worker.dedup.base import *
from worker.dedup.sqlite import SqliteStore
store = SqliteStore.open(sys.argv[1], StoreOptions(timeout=20.0))
token = bytes.fromhex(sys.argv[2]) + bytes(4)
held = []
while True:
    wanted = [os.urandom(RECORD_BYTES) for _ in range(20)]
    batch = Batch([Complete(r, token, b"body") for r in held],
                  claims=[Claim(r, token, b"body") for r in wanted])
    answers = store.apply(batch)
    assert set(answers.completes) <= {Answer.KEPT}, answers.completes
    sys.stdout.write("".join(r.hex() + "\\n" for r in held))
    sys.stdout.flush()
    held = wanted
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "dedup.db"


Open = Callable[..., SqliteStore]


@pytest.fixture
def open_store(path: Path) -> Iterator[Open]:
    opened = []

    def open_one(options: StoreOptions = OPTIONS) -> SqliteStore:
        opened.append(SqliteStore.open(f"sqlite:///{path}", options))
        return opened[-1]

    yield open_one
    for store in opened:
        store.close()


def claim(store: SqliteStore, record: bytes, token: bytes = TOKEN) -> Verdict:
    return store.apply(Batch(claims=[Claim(record, token, b"body")])).claims[0]


def complete(store: SqliteStore, *records: bytes) -> list[Answer]:
    return store.apply(
        Batch(completes=[Complete(record, TOKEN, b"body") for record in records])
    ).completes


def connection_of(store: SqliteStore) -> sqlite3.Connection:
    """What SQLite does for one connection only can be seen and set there only."""
    db = store._file.db
    assert db is not None
    return db


def new_record() -> bytes:
    return os.urandom(RECORD_BYTES)


@pytest.mark.parametrize("made", ["just now", "long ago"])
def test_what_is_added_to_a_long_past_is_written_side_by_side(
    path: Path, open_store: Open, made: str
) -> None:
    """Records of random places would each write a page of their own."""
    record_id, store, begin = record_ids("bank.work"), open_store(), 1_796_000_000.0
    for batch in range(40):
        moments = [begin + (batch * 1000 + number) / 100 for number in range(1000)]
        complete(store, *(record_id(new_id(moment)) for moment in moments))
    db = connection_of(store)
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    pages, moment = db.execute("PRAGMA page_count").fetchone()[0], begin
    if made == "just now":
        moment += 400
    complete(store, *(record_id(new_id(moment + number / 1000)) for number in range(1000)))
    frame = db.execute("PRAGMA page_size").fetchone()[0] + 24
    assert path.with_name("dedup.db-wal").stat().st_size / frame < 60 < pages / 5


# Processes


def test_what_was_told_to_a_process_that_is_killed_is_known_to_the_others(
    path: Path, open_store: Open, tmp_path: Path
) -> None:
    owners = [os.urandom(OWNER_BYTES) for _ in range(2)]
    outputs = [tmp_path / name for name in ("one", "two")]
    processes = []
    for owner, output in zip(owners, outputs, strict=True):
        with output.open("wb") as file:
            command = [sys.executable, "-c", WORKER, f"sqlite:///{path}", owner.hex()]
            environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
            processes.append(subprocess.Popen(command, stdout=file, env=environment))
    try:
        until(lambda: all(output.stat().st_size > 20_000 for output in outputs), 60)
        processes[0].send_signal(signal.SIGKILL)
        processes[0].wait()
        size = outputs[1].stat().st_size
        until(lambda: outputs[1].stat().st_size > size + 10_000, 60, "the other one goes on")
    finally:
        for process in processes:
            process.kill()
            process.wait()
    store = open_store(StoreOptions(timeout=20.0))
    told = [
        bytes.fromhex(line)
        for output in outputs
        for line in output.read_text().splitlines()
        if len(line) == 2 * RECORD_BYTES
    ]
    claims = [Claim(record, TOKEN, b"body") for record in told]
    assert set(store.apply(Batch(claims=claims)).claims) == {DUPLICATE}
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        held = [record for (record,) in db.execute("SELECT record FROM dedup_held")]
    db.close()
    assert 0 < len(held) <= 40
    suspects = [Claim(record, TOKEN, b"body") for record in held]
    verdicts = store.apply(Batch(claims=suspects, dead=owners)).claims
    assert set(verdicts) == {Verdict(Answer.SUSPECT, 1)}


def test_many_may_open_a_new_file_at_once(path: Path) -> None:
    start = Barrier(8)

    def open_and_claim(number: int) -> Answer:
        start.wait()
        store = SqliteStore.open(f"sqlite:///{path}", StoreOptions(timeout=20.0))
        answer = claim(store, bytes(RECORD_BYTES), bytes([number + 1]) * 12).answer
        store.close()
        return answer

    with ThreadPoolExecutor(8) as pool:
        answers = sorted(pool.map(open_and_claim, range(8)))
    assert answers == [Answer.FRESH, *[Answer.BUSY] * 7]


def test_the_lock_is_asked_for_often(path: Path, open_store: Open) -> None:
    """By SQLite's own waiting it was asked for every 100 ms, and missed for 2 s, beside others."""
    store = open_store()
    asked: list[str] = []
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert store._file.db is not None
        store._file.db.set_trace_callback(asked.append)
        with pytest.raises(DedupUnavailable, match="locked past the timeout"):
            store.parked("bank")
    assert asked.count("BEGIN IMMEDIATE") >= 5, asked


def test_a_file_that_stays_locked_is_told_and_waited_for(path: Path, open_store: Open) -> None:
    store, record = open_store(), new_record()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(DedupUnavailable, match="locked past the timeout"):
        claim(store, record)
    with pytest.raises(DedupUnavailable, match="locked past the timeout"):
        open_store()
    other.execute("ROLLBACK")
    other.close()
    assert claim(store, record) == FRESH


# The disk


def test_a_full_disk_is_told_and_waited_for(open_store: Open) -> None:
    store = open_store()
    connection_of(store).execute("PRAGMA max_page_count = 1")
    many = [new_record() for _ in range(5000)]
    with pytest.raises(DedupUnavailable, match="disk is full"):
        complete(store, *many)
    assert complete(store, *many) == [Answer.KEPT] * 5000  # a new connection, without the limit


def test_a_file_that_became_read_only_is_told(open_store: Open) -> None:
    store = open_store()
    connection_of(store).execute("PRAGMA query_only = 1")
    with pytest.raises(DedupUnavailable, match="read-only"):
        complete(store, new_record())


def test_completions_are_on_disk_and_claims_in_the_systems_hands(open_store: Open) -> None:
    store, full, normal = open_store(), 2, 1
    complete(store, new_record())
    assert connection_of(store).execute("PRAGMA synchronous").fetchone() == (full,)
    claim(store, new_record())
    assert connection_of(store).execute("PRAGMA synchronous").fetchone() == (normal,)
    assert connection_of(store).execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_old_ids_and_claims_leave_the_file(path: Path, open_store: Open) -> None:
    store = open_store()
    complete(store, *(new_record() for _ in range(500)))
    for _ in range(10):
        claim(store, new_record())
    with sqlite3.connect(path) as db:
        db.execute("UPDATE dedup_done SET expires = 1")
        db.execute("UPDATE dedup_held SET deadline = 1")
    for _ in range(100):
        complete(store, new_record())
    (done,) = db.execute("SELECT count(*) FROM dedup_done").fetchone()
    (held,) = db.execute("SELECT count(*) FROM dedup_held").fetchone()
    db.close()
    assert (done, held) == (100, 0)


def test_an_expired_id_is_forgotten_before_it_leaves_the_file(path: Path, open_store: Open) -> None:
    store, records = open_store(), [new_record() for _ in range(2)]
    complete(store, *records)
    with sqlite3.connect(path) as db:
        db.execute("UPDATE dedup_done SET expires = 1")
    db.close()
    assert claim(store, records[0]) == FRESH
    assert complete(store, records[1]) == [Answer.KEPT]
    assert claim(store, records[1]) == DUPLICATE


# The file


def test_the_file_may_be_somebody_elses_too(path: Path, open_store: Open) -> None:
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 7")
        db.execute("CREATE TABLE messages (body)")
    store = open_store()
    assert claim(store, new_record()) == FRESH
    assert db.execute("PRAGMA user_version").fetchone() == (7,)
    names = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    db.close()
    assert {name for name in names if not name.startswith("dedup_")} == {"messages"}


def test_a_layout_of_another_version_is_refused(path: Path, open_store: Open) -> None:
    open_store()
    with sqlite3.connect(path) as db:
        db.execute("UPDATE dedup_meta SET value = '9' WHERE name = 'version'")
    db.close()
    with pytest.raises(ConfigurationError, match="layout is version 9"):
        open_store()


def test_a_file_that_is_no_database_is_refused(path: Path, open_store: Open) -> None:
    path.write_text("Dear diary, " * 1000)
    with pytest.raises(ConfigurationError, match="not an SQLite database"):
        open_store()


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="folder must exist"):
        SqliteStore.open(f"sqlite:///{tmp_path}/nowhere/dedup.db", OPTIONS)


def test_a_relative_path_is_the_same_file_after_a_change_of_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store, record = SqliteStore.open("sqlite:///my%20ids.db", OPTIONS), new_record()
    claim(store, record)
    store.close()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert claim(store, record, b"another-0001").answer is Answer.BUSY
    store.close()
    assert (tmp_path / "my ids.db").exists()


@pytest.mark.parametrize(
    "url",
    ["sqlite://dedup.db", "sqlite:///", "sqlite:///a.db?mode=ro", "sqlite:///:memory:", "file:a"],
)
def test_a_url_that_cannot_be_meant_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="dedup URL"):
        SqliteStore.open(url, OPTIONS)
