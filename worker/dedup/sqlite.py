"""Records in one SQLite file, shared by the processes of one machine.

Each batch is one IMMEDIATE transaction, in which every change is an UPDATE or DELETE whose WHERE
names the token: compare-and-set as SQL says it. As all processes wait for the one write lock, what
is usual is done for many entries by one call; the number of rows that it changed tells whether
there was anything else among them, and then it is undone, and each entry looked at by itself.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from worker.dedup.base import (
    NOBODY,
    Answer,
    Answers,
    Batch,
    DedupStore,
    Held,
    Verdict,
    judge_claim,
)
from worker.errors import DedupUnavailable
from worker.stores.sqlite import Layout, SqliteFile, path_of

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator, Mapping, Sequence
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    from worker.dedup.base import Claim, Complete, Release, StoreOptions

#: ``token`` is NULL where nobody owns the record; its ``deadline`` is when it was given back. It is
#: NOBODY where it was given back with a wait, which ends at its ``deadline``. ``span`` is as
#: ``Held`` has it: the clock is the machine's, and may be set back.
#: ``deadline`` is in seconds since 1970 and ``expires`` in whole ones, rounded up: there are few
#: of the former and millions of the latter.
_SCHEMA = (
    """CREATE TABLE IF NOT EXISTS dedup_held (
        record BLOB PRIMARY KEY, token BLOB, deadline REAL NOT NULL, span REAL NOT NULL,
        attempts INTEGER NOT NULL, crashes INTEGER NOT NULL) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS dedup_done (
        record BLOB PRIMARY KEY, fingerprint BLOB NOT NULL, expires INTEGER NOT NULL
        ) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS dedup_parked (
        service BLOB NOT NULL, key BLOB NOT NULL, number INTEGER NOT NULL,
        PRIMARY KEY (service, key)) WITHOUT ROWID""",
    # Programs that know nothing of revisions leave it alone, so the layout is the same to them.
    """CREATE TABLE IF NOT EXISTS dedup_revisions (
        place BLOB PRIMARY KEY, revision INTEGER NOT NULL, expires INTEGER NOT NULL
        ) WITHOUT ROWID""",
)
_LAYOUT = Layout("dedup", "dedup_meta", 3, _SCHEMA, DedupUnavailable)
#: Seconds since 1970 by the database's clock, to the millisecond.
_NOW = "SELECT (julianday('now') - 2440587.5) * 86400.0"
#: Records of one look; what is left of them is NULL, which is no record.
_MANY = 32
_SOME = ",".join("?" * _MANY)
_RECORDS = f"record IN ({_SOME})"
_LOOK_DONE_MANY = f"SELECT record, fingerprint FROM dedup_done WHERE expires > ? AND {_RECORDS}"  # noqa: S608 - question marks
_LOOK_HELD_MANY = (
    f"SELECT record, token, deadline, span, attempts, crashes FROM dedup_held WHERE {_RECORDS}"  # noqa: S608 - question marks
)
_LOOK_DONE = "SELECT fingerprint FROM dedup_done WHERE record = ? AND expires > ?"
_MARK_DONE = """INSERT INTO dedup_done VALUES (?, ?, ?) ON CONFLICT (record) DO UPDATE
    SET fingerprint = excluded.fingerprint, expires = excluded.expires
    WHERE dedup_done.expires <= ?"""
_IS_HELD = "SELECT 1 FROM dedup_held WHERE record = ?"
_HOLD = "INSERT OR REPLACE INTO dedup_held VALUES (?, ?, ?, ?, ?, ?)"
#: zeroblob(12) is NOBODY.
_LET_GO = """DELETE FROM dedup_held
    WHERE record = ? AND (token = ? OR ? AND (token IS NULL OR token = zeroblob(12)))"""
_GIVE_BACK = """UPDATE dedup_held
    SET token = NULL, deadline = ?, span = 0, attempts = attempts - ?
    WHERE record = ? AND token = ?"""
_LET_WAIT = """UPDATE dedup_held
    SET token = ?, deadline = ?, span = ? WHERE record = ? AND token = ?"""
_LOOK_CLAIMED = """SELECT 1 FROM dedup_held
    WHERE record = ? AND token != zeroblob(12) AND deadline > ?"""
_RENEW = "UPDATE dedup_held SET deadline = ?, span = ? WHERE record = ? AND token = ?"
_SEE = "UPDATE dedup_held SET deadline = ? WHERE record = ?"
_MARK = """INSERT INTO dedup_revisions VALUES (?, ?, ?) ON CONFLICT (place) DO UPDATE
    SET revision = excluded.revision, expires = excluded.expires
    WHERE dedup_revisions.revision <= excluded.revision OR dedup_revisions.expires <= ?"""
_LOOK_REVISIONS = (
    f"SELECT place, revision FROM dedup_revisions WHERE expires > ? AND place IN ({_SOME})"  # noqa: S608 - question marks
)
_DUPLICATE = Verdict(Answer.DUPLICATE)
_CONFLICT = Verdict(Answer.CONFLICT)
#: A sweep looks at so many rows for each entry of the batch, so the whole table is seen before
#: a quarter as many are added; the floor lets a quiet store finish, the cap bounds one batch.
_SWEEP_FACTOR, _SWEEP_FLOOR, _SWEEP_CAP = 4, 16, 2000


class _Sweep(NamedTuple):
    """A walk through one table in the order of its key, a bite a batch, that drops old rows."""

    look: str
    drop: str


_SWEEP_HELD = _Sweep(
    "SELECT record, deadline FROM dedup_held WHERE record > ? ORDER BY record LIMIT ?",
    "DELETE FROM dedup_held WHERE record = ?",
)
_SWEEP_DONE = _Sweep(
    "SELECT record, expires FROM dedup_done WHERE record > ? ORDER BY record LIMIT ?",
    "DELETE FROM dedup_done WHERE record = ?",
)
_SWEEP_REVISIONS = _Sweep(
    "SELECT place, expires FROM dedup_revisions WHERE place > ? ORDER BY place LIMIT ?",
    "DELETE FROM dedup_revisions WHERE place = ?",
)


class SqliteStore(DedupStore):
    """A store in a file: it survives kill -9 and, for completions, a power cut.

    Completions are on disk (synchronous=FULL) before ``apply`` returns. A batch without any is
    safe against a crash of the process but not of the machine: a claim that a power cut forgets
    is harmless, since whoever made it is gone too.
    """

    tier = "sqlite: ids survive crashes and power cuts; for the processes of one machine"
    shared = True
    keeps_revisions = True

    def __init__(self, path: Path, options: StoreOptions) -> None:
        self._options = options
        self._file = SqliteFile(path, _LAYOUT, options.timeout)
        self._swept: dict[_Sweep, bytes] = {}

    @classmethod
    def open(cls, url: str, options: StoreOptions) -> SqliteStore:
        """Open ``sqlite:///relative.db`` or ``sqlite:////absolute.db``; creates the file.

        Raises ConfigurationError for what waiting cannot mend (no such folder, read-only, not a
        database, made by a newer version), and DedupUnavailable for what it can (locked, full).
        """
        store = cls(path_of(url, _LAYOUT.kind), options)
        store._file.open()
        return store

    def apply(self, batch: Batch) -> Answers:
        """Apply the whole batch in one transaction; all of it or nothing is written."""
        dead = frozenset(batch.dead)
        with self._file.transaction(durable=bool(batch.completes or batch.marks)) as db:
            (now,) = db.execute(_NOW).fetchone()
            ttl = self._options.claim_ttl
            answers = Answers(
                self._complete_all(db, batch.completes, now) if batch.completes else [],
                [_release(db, entry, now) for entry in batch.releases],
                [
                    _kept(db.execute(_RENEW, (now + ttl, ttl, record, token)))
                    for record, token in batch.renewals
                ],
                [
                    verdict
                    for claims in _by_once(batch.claims)
                    for verdict in self._claim_all(db, claims, dead, now)
                ],
                self._revisions(db, batch, now) if batch.marks or batch.looks else (),
            )
            entries = sum(len(part) for part in answers)
            bite = min(_SWEEP_CAP, max(_SWEEP_FLOOR, entries * _SWEEP_FACTOR))
            self._sweep(db, _SWEEP_HELD, bite, now - self._options.claim_memory)
            if batch.completes:
                self._sweep(db, _SWEEP_DONE, bite, now)
            if batch.marks:
                self._sweep(db, _SWEEP_REVISIONS, bite, now)
        return answers

    def forget(self, records: Sequence[bytes]) -> AbstractSet[bytes]:
        """Make the records absent that nobody owns; return the others. On disk when it returns."""
        claimed = set()
        with self._file.transaction(durable=True) as db:
            (now,) = db.execute(_NOW).fetchone()
            horizon = now - self._options.claim_memory
            for record in records:
                if db.execute(_LOOK_CLAIMED, (record, horizon)).fetchone() is not None:
                    claimed.add(record)
                    continue
                db.execute("DELETE FROM dedup_done WHERE record = ?", (record,))
                db.execute("DELETE FROM dedup_held WHERE record = ?", (record,))
        return claimed

    def warnings(self) -> list[str]:
        """Return nothing: whatever would weaken this store is refused by ``open``."""
        return []

    def mark_parked(self, service: str, key: str, at: int) -> None:
        """Note, on disk, that a message of ``key`` was parked ``at``; the highest number stands."""
        with self._file.transaction(durable=True) as db:
            db.execute(
                "INSERT INTO dedup_parked VALUES (?, ?, ?)"
                " ON CONFLICT DO UPDATE SET number = max(number, excluded.number)",
                (_blob(service), _blob(key), at),
            )

    def parked(self, service: str) -> Mapping[str, int]:
        """Return every parked key of ``service`` with the last number that it was parked at."""
        with self._file.transaction(durable=False) as db:
            rows = db.execute(
                "SELECT key, number FROM dedup_parked WHERE service = ?", (_blob(service),)
            ).fetchall()
        return {key.decode("utf-8", "surrogatepass"): number for key, number in rows}

    def unpark(self, service: str, key: str, upto: int) -> bool:
        """Forget ``key`` unless it was parked after ``upto``; tell whether it is forgotten."""
        with self._file.transaction(durable=True) as db:
            cursor = db.execute(
                "DELETE FROM dedup_parked WHERE service = ? AND key = ? AND number <= ?",
                (_blob(service), _blob(key), upto),
            )
        return cursor.rowcount == 1

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _complete_all(
        self, db: sqlite3.Connection, entries: Sequence[Complete], now: float
    ) -> list[Answer]:
        """Complete the entries, which are claimed by their tokens as a rule, and not done yet."""
        expires = math.ceil(now + self._options.retention)
        db.execute("SAVEPOINT completes")
        claims = [(record, token, effect) for record, token, _, effect in entries]
        if db.executemany(_LET_GO, claims).rowcount == len(entries):
            marks = [(record, fingerprint, expires, now) for record, _, fingerprint, _ in entries]
            if db.executemany(_MARK_DONE, marks).rowcount == len(entries):
                db.execute("RELEASE completes")
                return [Answer.KEPT] * len(entries)
        db.execute("ROLLBACK TO completes")
        db.execute("RELEASE completes")
        return [self._complete(db, entry, now) for entry in entries]

    def _complete(self, db: sqlite3.Connection, entry: Complete, now: float) -> Answer:
        record, token, fingerprint, effect = entry
        if db.execute(_LET_GO, (record, token, effect)).rowcount == 0:
            if db.execute(_IS_HELD, (record,)).fetchone() is not None:
                return Answer.STALE
            if not effect and db.execute(_LOOK_DONE, (record, now)).fetchone() is None:
                return Answer.STALE
        expires = math.ceil(now + self._options.retention)
        marked = db.execute(_MARK_DONE, (record, fingerprint, expires, now)).rowcount
        return Answer.KEPT if marked else Answer.ALREADY_DONE

    def _claim_all(
        self, db: sqlite3.Connection, entries: Sequence[Claim], dead: AbstractSet[bytes], now: float
    ) -> list[Verdict]:
        """Return the verdicts of claims for records of which none comes twice."""
        records = [entry.record for entry in entries]
        done = dict(_look(db, _LOOK_DONE_MANY, records, now))
        held = {record: Held(*row) for record, *row in _look(db, _LOOK_HELD_MANY, records)}
        ttl, seen, taken = self._options.claim_ttl, [], []
        verdicts = []
        for entry in entries:
            record, token, fingerprint, _ = entry
            if record in done:
                verdicts.append(_DUPLICATE if done[record] == fingerprint else _CONFLICT)
                continue
            known = held.get(record)
            if known is not None and (now_known := known.seen(now)) != known:
                known = now_known
                seen.append((known.deadline, record))
            verdict = judge_claim(entry, known, dead, now, self._options)
            if verdict.answer is Answer.FRESH:
                attempts, crashes = verdict.attempts, verdict.crashes
                taken.append((record, token, now + ttl, ttl, attempts, crashes))
            verdicts.append(verdict)
        db.executemany(_SEE, seen)
        db.executemany(_HOLD, taken)
        return verdicts

    def _revisions(
        self, db: sqlite3.Connection, batch: Batch, now: float
    ) -> tuple[int | None, ...]:
        expires = math.ceil(now + self._options.revision_retention)
        db.executemany(_MARK, [(*mark, expires, now) for mark in batch.marks])
        known = dict(_look(db, _LOOK_REVISIONS, batch.looks, now))
        return tuple(map(known.get, batch.looks))

    def _sweep(self, db: sqlite3.Connection, sweep: _Sweep, bite: int, horizon: float) -> None:
        """Look at the next ``bite`` rows of a table and drop those at or before ``horizon``."""
        rows = db.execute(sweep.look, (self._swept.get(sweep, b""), bite)).fetchall()
        self._swept[sweep] = rows[-1][0] if len(rows) == bite else b""
        old = [(record,) for record, until in rows if until <= horizon]
        if old:
            db.executemany(sweep.drop, old)


def _by_once(entries: Sequence[Claim]) -> Iterator[Sequence[Claim]]:
    """Yield the entries in their order, in parts in which no record comes twice."""
    if len({entry.record for entry in entries}) == len(entries):
        if entries:
            yield entries
        return
    part: dict[bytes, Claim] = {}
    for entry in entries:
        if entry.record in part:
            yield [*part.values()]
            part.clear()
        part[entry.record] = entry
    yield [*part.values()]


def _look(
    db: sqlite3.Connection, sql: str, records: Sequence[bytes], *first: float
) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of these records, some at a time."""
    for at in range(0, len(records), _MANY):
        some = records[at : at + _MANY]
        yield from db.execute(sql, (*first, *some, *[None] * (_MANY - len(some))))


def _release(db: sqlite3.Connection, entry: Release, now: float) -> Answer:
    record, token, refund, wait = entry
    if wait > 0:
        return _kept(db.execute(_LET_WAIT, (NOBODY, now + wait, wait, record, token)))
    return _kept(db.execute(_GIVE_BACK, (now, refund, record, token)))


def _kept(cursor: sqlite3.Cursor) -> Answer:
    """Return what a compare-and-set did."""
    return Answer.KEPT if cursor.rowcount == 1 else Answer.STALE


def _blob(text: str) -> bytes:
    # Not TEXT: SQLite refuses lone surrogates and cuts no text at NUL only by luck.
    return text.encode("utf-8", "surrogatepass")
