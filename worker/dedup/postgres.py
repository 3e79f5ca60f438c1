"""Records in PostgreSQL: one message to the server a batch, whatever is in it.

What is held and what is done are tables of their own. Each change of a record happens under the
lock of its row in the former; a record that has none there is given one for that. So it is also
what is done that this lock guards, which is partitioned by time (``partitions.py``) and could not
have a unique key. Batches lock their rows in the order of the records: none waits for another that
waits for it. The locks are taken by a statement of their own, ahead of that which holds the rules
(``postgres.sql``), because a statement sees what was committed before it began.

Both are repeated where a record comes in a batch more than once: each such *wave* finds the record
as the one before has left it. Behind them comes what is said of revisions (``marks.py``). The clock
is the server's.
"""

from __future__ import annotations

from collections import Counter
from importlib import resources
from typing import TYPE_CHECKING, Any

from psycopg import errors

from worker.dedup import marks
from worker.dedup.base import RECORD_BYTES, Answer, Answers, Batch, DedupStore
from worker.dedup.packed import ENTRY_BYTES, answered, pack, pack_forgotten, unpack
from worker.dedup.upkeep import Upkeep
from worker.errors import DedupUnavailable
from worker.stores.postgres import Database, Kind, alone

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from worker.dedup.base import StoreOptions
    from worker.stores.postgres import Line

_KIND = Kind("dedup", "the tables qworker_dedup_…", DedupUnavailable)
_VERSION = "2"
#: ``token`` is NULL where nobody owns the record; its ``deadline`` is when it was given back. It is
#: NOBODY where it was given back with a wait, which ends at its ``deadline``. ``span`` is as
#: ``Held`` has it: the clock may be set back. ``memory`` is the claim_memory of who wrote it.
#: Rows come and go with each message, so the table is vacuumed by their number, without pauses.
_TABLES = """
CREATE TABLE qworker_dedup_held (
    deadline float8 NOT NULL, span float8 NOT NULL, memory float8 NOT NULL,
    attempts integer NOT NULL, crashes integer NOT NULL, token bytea, record bytea PRIMARY KEY
) WITH (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000,
    autovacuum_vacuum_cost_delay = 0
);
CREATE TABLE qworker_dedup_done (
    expires bigint NOT NULL, fingerprint bytea NOT NULL, record bytea NOT NULL
) PARTITION BY RANGE (expires);
CREATE INDEX qworker_dedup_done_record ON qworker_dedup_done (record);
CREATE TABLE qworker_dedup_parked (
    service bytea, key bytea, number bigint NOT NULL, PRIMARY KEY (service, key)
);
CREATE TABLE qworker_dedup_meta (name text PRIMARY KEY, value text NOT NULL);
"""
_INSERT_VERSION = "INSERT INTO qworker_dedup_meta VALUES ('version', %s)"
_LOOK_VERSION = "SELECT value FROM qworker_dedup_meta WHERE name = 'version'"
_IS_THERE = "SELECT to_regclass('qworker_dedup_meta') IS NOT NULL"
#: Records are found by their index alone, also by a plan that was made when there were few.
_SETTINGS = """
SET enable_seqscan = off; SET enable_bitmapscan = off;
SET enable_hashjoin = off; SET enable_mergejoin = off;
SET plan_cache_mode = force_generic_plan; SET jit = off; SET standard_conforming_strings = on;
"""
#: WHERE false: a row that is there is locked, and stays as it is.
_LOCK = """PREPARE qworker_dedup_lock (bytea, float8, float8) AS
INSERT INTO qworker_dedup_held AS held (record, token, deadline, span, memory, attempts, crashes)
SELECT substring($1 FROM at FOR 16), CASE WHEN claims THEN substring($1 FROM at + 16 FOR 12) END,
    (SELECT date_part('epoch', clock_timestamp())) + $2, $2, $3, claims::integer, 0
FROM (
    SELECT at, chr(get_byte($1, at + 31)) IN ('K', 'S') AS claims
    FROM generate_series(1, length($1), 33) AS at
) AS entry
ORDER BY 1
ON CONFLICT (record) DO UPDATE SET token = held.token WHERE false
"""
_RULES = resources.files("worker.dedup").joinpath("postgres.sql").read_text()
_APPLY = f"PREPARE qworker_dedup_apply (bytea, bytea, float8, float8, float8) AS {_RULES}"
#: 8 is STALE: claimed, and not forgotten.
_FORGET = """PREPARE qworker_dedup_forget (bytea) AS
WITH clock AS MATERIALIZED (
    SELECT date_part('epoch', clock_timestamp()) AS now
),
found AS MATERIALIZED (
    SELECT at, held.record, held.ctid AS place,
        token IS NOT NULL AND token <> '\\x000000000000000000000000'
            AND least(deadline, now + span) + memory > now AS is_claimed
    FROM generate_series(1, length($1), 33) AS at
        JOIN qworker_dedup_held AS held ON held.record = substring($1 FROM at FOR 16)
        CROSS JOIN clock
),
let_go AS (
    DELETE FROM qworker_dedup_held AS held USING found
    WHERE held.ctid = found.place AND NOT is_claimed
),
undone AS (
    DELETE FROM qworker_dedup_done AS done USING found
    WHERE done.record = found.record AND NOT is_claimed
)
SELECT encode(string_agg(CASE WHEN is_claimed THEN '\\x08'::bytea ELSE '\\x06' END, '' ORDER BY at),
    'hex')
FROM found
"""
_MARK_PARKED = """INSERT INTO qworker_dedup_parked AS parked VALUES (%s, %s, %s)
    ON CONFLICT (service, key) DO UPDATE SET number = greatest(parked.number, excluded.number)"""
_PARKED = "SELECT key, number FROM qworker_dedup_parked WHERE service = %s"
_UNPARK = "DELETE FROM qworker_dedup_parked WHERE service = %s AND key = %s AND number <= %s"
_DURABILITY = "SELECT current_setting('fsync'), current_setting('synchronous_commit')"
_MAY_MAKE_PARTITIONS = """SELECT pg_has_role(relowner, 'USAGE')
        AND has_schema_privilege(relnamespace, 'CREATE')
    FROM pg_class WHERE oid = 'qworker_dedup_done'::regclass"""


class PostgresStore(DedupStore):
    """A store in PostgreSQL, for every process that reaches the server.

    What it told survives whatever the database survives: with ``synchronous_commit`` a crash of the
    server, with synchronous replication its loss.
    """

    tier = "postgresql: ids are known to all machines, and are as durable as the database"
    shared = True

    def __init__(self, url: str, options: StoreOptions) -> None:
        self._database = Database(url, _KIND, options.timeout, self._prepare)
        self._upkeep = Upkeep(self._database.shown, options)
        self._revision_retention = options.revision_retention
        #: Known once it is connected: the table may be missing, and this user may not make it.
        self.keeps_revisions = False
        times = (options.claim_ttl, options.claim_memory, options.retention)
        self._times = ", ".join(f"{seconds:.6f}" for seconds in times)
        self._claim_times = ", ".join(f"{seconds:.6f}" for seconds in times[:2])

    @classmethod
    def open(cls, url: str, options: StoreOptions) -> PostgresStore:
        """Open ``postgresql://[user[:password]@][host][:port]/database[?sslmode=…]``.

        Several hosts, by commas, fail over (``target_session_attrs=read-write`` finds the one that
        can be written to). Makes the tables ``qworker_dedup_…`` where they are not there yet, in
        the first schema of the ``search_path``.
        """
        store = cls(url, options)
        with store._database.talking(opening=True) as line:
            store._upkeep.run(line)
        with store._database.talking(opening=True) as line:
            # Tells whether this user may do all of it, before the first message depends on it.
            line.begin(store._script([bytes(ENTRY_BYTES - 1) + b"N"], b""))()
        return store

    def apply(self, batch: Batch) -> Answers:
        """Apply the whole batch in one transaction; all of it or nothing is written."""
        return self.begin(batch)()

    def begin(self, batch: Batch) -> Callable[[], Answers]:
        """Send the batch; the server works on it until its answers are asked for."""
        entries = pack(batch)
        waves = _waves(entries) if entries else []
        dead = b"".join(batch.dead)
        scripts = [self._script([entries[at] for at in wave], dead) for wave in waves]
        scripts += marks.statements(batch, self._revision_retention)
        if not scripts:
            return lambda: Answers([], [], [], [])
        script = "; ".join(scripts)
        with self._database.talking() as line:
            if self._upkeep.is_due():
                self._upkeep.run(line)
            replied = line.begin(script)

        def finish() -> Answers:
            with self._database.talking() as line:
                try:
                    replies = replied()
                except errors.CheckViolation:  # no partition has room for what is done
                    self._upkeep.make_room(line)
                    replies = line.begin(script)()
            revisions = marks.read(replies.pop()) if batch.looks else ()
            found: list[Any] = [None] * len(entries)
            for wave, reply in zip(waves, replies, strict=True):
                for at, answer in zip(wave, unpack(bytes.fromhex(reply), len(wave)), strict=True):
                    found[at] = answer
            return answered(batch, found, revisions)

        return finish

    def forget(self, records: Sequence[bytes]) -> AbstractSet[bytes]:
        """Make the records absent that nobody owns; return the others."""
        wanted = sorted({*records})
        if not wanted:
            return set()
        hexed = b"".join(map(pack_forgotten, wanted)).hex()
        script = f"{self._lock(hexed)}; EXECUTE qworker_dedup_forget('\\x{hexed}')"
        with self._database.talking() as line:
            (reply,) = line.begin(script)()
        answers = unpack(bytes.fromhex(reply), len(wanted))
        told = zip(wanted, answers, strict=True)
        return {record for record, answer in told if answer is Answer.STALE}

    def warnings(self) -> list[str]:
        """Tell where a crash of the server forgets what it answered, and what will not go on."""
        with self._database.talking() as line:
            ((fsync, commit),) = line.execute(_DURABILITY)
            ((may_make,),) = line.execute(_MAY_MAKE_PARTITIONS)
        shown, found = self._database.shown, []
        if fsync == "off":
            found.append(f"{shown}: fsync is off, so a power cut may damage it; set fsync on")
        if commit == "off":
            found.append(
                f"{shown}: synchronous_commit is off, so a crash of the server forgets what was"
                " done right before it, and that is handled again; set synchronous_commit on"
            )
        if not may_make:
            found.append(
                f"{shown}: this user cannot make the next partition of qworker_dedup_done, and then"
                " nothing can be recorded; use the one that owns the table, and may create in its"
                " schema"
            )
        return found

    def mark_parked(self, service: str, key: str, at: int) -> None:
        """Note that a message of ``key`` was parked ``at``; the highest number stands."""
        with self._database.talking() as line:
            line.execute(_MARK_PARKED, (_encoded(service), _encoded(key), at))

    def parked(self, service: str) -> Mapping[str, int]:
        """Return every parked key of ``service`` with the last number that it was parked at."""
        with self._database.talking() as line:
            rows = line.execute(_PARKED, (_encoded(service),)).fetchall()
        return {key.decode("utf-8", "surrogatepass"): number for key, number in rows}

    def unpark(self, service: str, key: str, upto: int) -> bool:
        """Forget ``key`` unless it was parked after ``upto``; tell whether it is forgotten."""
        with self._database.talking() as line:
            done = line.execute(_UNPARK, (_encoded(service), _encoded(key), upto))
        return done.rowcount == 1

    def close(self) -> None:
        """Disconnect; the next call connects again."""
        self._database.close()

    def _prepare(self, line: Line) -> None:
        """Make the tables where they are not there, and refuse a layout that is not known."""
        if line.execute(_IS_THERE).fetchone() == (False,):
            with alone(line):
                if line.execute(_IS_THERE).fetchone() == (False,):
                    line.execute(_TABLES)
                    line.execute(_INSERT_VERSION, (_VERSION,))
            self._upkeep.begin_anew()
        row = line.execute(_LOOK_VERSION).fetchone()
        if row != (_VERSION,):
            found = "unknown" if row is None else f"version {row[0]}"
            raise self._database.mistake(
                f"its layout is {found}, this program knows version {_VERSION}; use the program"
                " that made it, or another database or schema"
            )
        self.keeps_revisions = self._upkeep.keeps_revisions = marks.make(line)
        line.execute(_SETTINGS)
        more = (marks.PREPARE,) if self.keeps_revisions else ()
        line.execute("; ".join((_LOCK, _APPLY, _FORGET, *more)))

    def _lock(self, hexed: str) -> str:
        return f"EXECUTE qworker_dedup_lock('\\x{hexed}', {self._claim_times})"

    def _script(self, entries: list[bytes], dead: bytes) -> str:
        """Return what applies a wave."""
        hexed = b"".join(entries).hex()
        rules = f"qworker_dedup_apply('\\x{hexed}', '\\x{dead.hex()}', {self._times})"
        return f"{self._lock(hexed)}; EXECUTE {rules}"


def _waves(entries: list[bytes]) -> list[Sequence[int]]:
    """Part the entries, told by their places, into waves in which no record comes twice.

    What is said of one record stays in its order; what is said of different ones needs none.
    """
    if len({entry[:RECORD_BYTES] for entry in entries}) == len(entries):
        return [range(len(entries))]
    waves: list[list[int]] = []
    said: Counter[bytes] = Counter()
    for at, entry in enumerate(entries):
        record = entry[:RECORD_BYTES]
        if said[record] == len(waves):
            waves.append([])
        waves[said[record]].append(at)
        said[record] += 1
    return list(waves)


def _encoded(text: str) -> bytes:
    # Not text: PostgreSQL has neither NUL nor lone surrogates in it.
    return text.encode("utf-8", "surrogatepass")
