"""Records in Redis: one script call a batch, or one a hash tag in Redis Cluster.

The script (``redis.lua``) holds the rules and tells the keys. Done ids are fields of small
hashes that Redis keeps in its compact listpack form, a fifth of what a key of its own costs an
id. A hash belongs to a slot (a hash tag, made of some bits of the record's digest) and to a
generation (the server's time divided by the width of the layout), and it expires as a whole.

The width and the number of slots are settled by whoever opens a prefix first, and stay so (key
``PREFIX`` + ``layout``): one who looked elsewhere would not find what is done. A later user with
a longer retention looks into as many generations as that takes.
"""

from __future__ import annotations

import math
import re
import struct
from contextlib import contextmanager
from hashlib import sha1
from importlib import resources
from typing import TYPE_CHECKING, Any

from worker.dedup.base import TIME_BYTES, Answer, Answers, Batch, DedupStore
from worker.dedup.packed import (
    ENTRY_BYTES,
    answered,
    milliseconds,
    pack,
    pack_forgotten,
    pack_looks,
    pack_marks,
    unpack,
)
from worker.errors import ConfigurationError, DedupUnavailable
from worker.stores.redis import SLOTS, Kind, Servers, checked, encoded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from worker.dedup.base import StoreOptions
    from worker.stores.redis import Command

_KIND = Kind("dedup", "qw:dedup:", DedupUnavailable, "ids", "messages are handled twice")
_ALPHABET = b"abcdefghijklmnopqrstuvwxyz234567ABCDEFGHIJKLMNOPQRSTUVWXYZ0189-_"
#: Generations looked into at most, besides the current one.
_MOST_BACK = 16
#: How far a server's clock may step back without hiding an id, in milliseconds.
_CLOCK_MARGIN = 300_000

_SETTINGS = struct.Struct(">6Q2H")

_SCRIPT = resources.files("worker.dedup").joinpath("redis.lua").read_bytes()
_SCRIPT_SHA = sha1(_SCRIPT).hexdigest()  # noqa: S324 - the name that Redis gives to a script
_PARKED_SCRIPT = resources.files("worker.dedup").joinpath("redis_parked.lua").read_bytes()


class RedisStore(DedupStore):
    """A store in Redis, for every process that reaches the server.

    It remembers as well as the server does: what a failover, or a restart without persistence,
    forgets may be done again.
    """

    tier = "redis: ids are known to all machines, and are as durable as the server keeps them"
    shared = True
    keeps_revisions = True

    def __init__(self, url: str, options: StoreOptions) -> None:
        self._options = options
        self._servers = Servers(url, _KIND, options.timeout, _SCRIPT)
        self._prefix = self._servers.prefix
        slots = self._servers.options.get("slots")
        self._slots = None if slots is None else int(slots)
        #: The first argument of the script; empty until the layout is known.
        self._settings = b""
        self._tag_length = 0
        self._tag_table = b""

    @classmethod
    def open(cls, url: str, options: StoreOptions) -> RedisStore:
        """Open ``redis(s)://[[user]:password@]host[:port][/db]`` or ``unix:///path[?db=0]``.

        Options: ``prefix`` of every key, ``slots`` (4096, 32768, 262144 or 1048576; up to 500
        ids a slot and retention take the least memory), ``cluster=1``, ``client_name``, and
        redis-py's ``ssl_ca_certs``, ``ssl_certfile``, ``ssl_keyfile``, ``ssl_cert_reqs`` and
        ``ssl_check_hostname``.
        """
        store = cls(url, options)
        with store._talking(opening=True):
            store._servers.check_cluster()
            store._settle_layout()
            # Tells whether this user may run scripts, before the first message depends on it.
            store._run([bytes(ENTRY_BYTES - 1) + b"N"], b"")
        return store

    def apply(self, batch: Batch) -> Answers:
        """Apply the whole batch: atomically on one server, in a cluster each tag atomically.

        The records of a key have other tags than its revision. So in a cluster revisions are marked
        first: where it ends there, a message that took effect comes again, and is superseded.
        """
        return self.begin(batch)()

    def begin(self, batch: Batch) -> Callable[[], Answers]:
        """Send the batch; the servers work on it until its answers are asked for."""
        entries = pack(batch)
        about_records = len(entries)
        marks = pack_marks(batch) if batch.marks else []
        if batch.looks or marks:
            entries += [*marks, *pack_looks(batch)]
        with self._talking():
            if marks and self._servers.cluster:
                self._run(marks, b"")
            replied = self._begin(entries, b"".join(batch.dead))

        def finish() -> Answers:
            with self._talking():
                found = replied()
            revisions = found[about_records + len(marks) :]
            return answered(batch, found[:about_records], revisions)

        return finish

    def forget(self, records: Sequence[bytes]) -> AbstractSet[bytes]:
        """Make the records absent that nobody owns; return the others."""
        with self._talking():
            answers = self._run([pack_forgotten(record) for record in records], b"")
        told = zip(records, answers, strict=True)
        return {record for record, answer in told if answer is Answer.STALE}

    def warnings(self) -> list[str]:
        """Tell where the server's settings make it forget; refuse one that evicts."""
        with self._talking():
            servers = self._servers
            found, persistence = servers.check_policy(), servers.info("persistence")
        if any(b"aof_enabled:0" in text for text in persistence):
            found.append(
                servers.told(
                    "appendonly is off, so a restarted Redis has forgotten what came after its last"
                    " snapshot (all, where snapshots are off too); set appendonly yes"
                )
            )
        return found

    def mark_parked(self, service: str, key: str, at: int) -> None:
        """Note that a message of ``key`` was parked ``at``; the highest number stands."""
        self._change_parked(service, key, "mark", at)

    def parked(self, service: str) -> Mapping[str, int]:
        """Return every parked key of ``service`` with the last number that it was parked at."""
        name = self._prefix + b"parked:" + encoded(service)
        with self._talking():
            (flat,) = checked(self._servers.exchange([(name, ("HGETALL", name))]))
        pairs = zip(flat[::2], flat[1::2], strict=True)
        return {key.decode("utf-8", "surrogatepass"): int(number) for key, number in pairs}

    def unpark(self, service: str, key: str, upto: int) -> bool:
        """Forget ``key`` unless it was parked after ``upto``; tell whether it is forgotten."""
        return self._change_parked(service, key, "unpark", upto) == 1

    def close(self) -> None:
        """Close the connections; the next call opens them again."""
        self._settings = b""
        self._servers.close()

    @contextmanager
    def _talking(self, *, opening: bool = False) -> Iterator[None]:
        """Talk with the servers; after any error the layout is looked at anew."""
        try:
            with self._servers.talking(opening=opening):
                yield
        except BaseException:
            self.close()
            raise

    def _settle_layout(self) -> None:
        """Settle or read the layout. Raises RedisError, ConfigurationError."""
        retention = milliseconds(self._options.retention)
        name = self._prefix + b"layout"
        wanted = b"version=3 slots=%d width=%d" % (self._slots or 32768, retention)
        replies = self._servers.exchange(
            [(name, ("SET", name, wanted, "NX")), (name, ("GET", name))]
        )
        layout: bytes = checked(replies)[1] or b""
        found = re.fullmatch(rb"version=3 slots=(\d+) width=([1-9]\d*)", layout)
        if found is None or int(found[1]) not in SLOTS:
            raise self._servers.mistake(
                f"its layout {layout!r} is not known to this version; use the version that made"
                " it, or another prefix"
            )
        slots, width = int(found[1]), int(found[2])
        back = math.ceil(retention / width)
        if self._slots not in {None, slots} or back > _MOST_BACK:
            raise self._servers.mistake(
                f"it was laid out for slots={slots} and a retention of {width / 1000:g} s, and"
                f" stays so; it cannot serve slots={self._slots or slots} and"
                f" {retention / 1000:g} s ({_MOST_BACK} times as long at most). Ask for what it"
                " has, or begin anew with another prefix (the ids under this one are forgotten)"
            )
        letters, self._tag_length = SLOTS[slots]
        self._tag_table = bytes(_ALPHABET[byte % letters] for byte in range(256))
        self._settings = _SETTINGS.pack(
            milliseconds(self._options.claim_ttl),
            milliseconds(self._options.claim_memory),
            width,
            retention,
            milliseconds(self._options.revision_retention),
            min(_CLOCK_MARGIN, width // 4),
            back,
            self._tag_length,
        )

    def _run(self, entries: list[bytes], dead: bytes) -> list[Any]:
        """Run the script over ``entries`` and return the answer or verdict of each."""
        return self._begin(entries, dead)()

    def _begin(self, entries: list[bytes], dead: bytes) -> Callable[[], list[Any]]:
        """Send the script's calls; the call that is returned waits for what they found."""
        if not self._settings:
            try:
                self._settle_layout()
            except ConfigurationError as error:
                # Not so when the store was opened: the server lost its data since, and
                # somebody else settled the layout anew.
                raise DedupUnavailable(str(error)) from error
        if not self._servers.cluster:
            call = self._call((), b"".join(entries), dead)
            replied = self._servers.begin([(b"", call)])
            return lambda: unpack(checked(replied())[0], len(entries))
        groups: dict[bytes, list[int]] = {}
        for index, entry in enumerate(entries):
            tag = entry[TIME_BYTES : TIME_BYTES + self._tag_length].translate(self._tag_table)
            groups.setdefault(tag, []).append(index)
        calls = []
        for tag, indices in groups.items():
            route = self._prefix + b"{" + tag + b"}"
            group = b"".join([entries[index] for index in indices])
            calls.append((tag, self._call((route,), group, dead)))
        replied = self._servers.begin(calls)

        def finish() -> list[Any]:
            found: list[Any] = [None] * len(entries)
            for indices, reply in zip(groups.values(), checked(replied()), strict=True):
                for index, answer in zip(indices, unpack(reply, len(indices)), strict=True):
                    found[index] = answer
            return found

        return finish

    def _call(self, route: tuple[bytes, ...], entries: bytes, dead: bytes) -> Command:
        tags = entries.translate(self._tag_table)
        settings = (self._settings, self._prefix)
        return ("EVALSHA", _SCRIPT_SHA, len(route), *route, *settings, entries, tags, dead)

    def _change_parked(self, service: str, key: str, change: str, number: int) -> int:
        name = self._prefix + b"parked:" + encoded(service)
        call = ("EVAL", _PARKED_SCRIPT, 1, name, encoded(key), change, number)
        with self._talking():
            return int(checked(self._servers.exchange([(name, call)]))[0])
