"""Records in dictionaries: the rules of ``base.py`` as plain code, and the store made of them."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from threading import Lock
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
from worker.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from worker.dedup.base import Claim, Complete, Mark, Release, Renew, StoreOptions

_SCHEME = "memory://"
_WARNING = (
    "the memory store forgets every id when the process ends: what the broker delivers again"
    " after that is handled again; set --dedup to sqlite://, redis:// or"
    " postgresql://"
)
_DUPLICATE = Verdict(Answer.DUPLICATE)
_CONFLICT = Verdict(Answer.CONFLICT)


class Finished(NamedTuple):
    """A record that is done; it is remembered until ``expires``."""

    fingerprint: bytes
    expires: float


class Reached(NamedTuple):
    """The last revision of a place; it is remembered until ``expires``."""

    revision: int
    expires: float


@dataclass(slots=True)
class Records:
    """Records and the rules that change them. A record is in one of the two, or absent.

    Times are seconds of any one clock. Not thread-safe.
    """

    held: dict[bytes, Held] = field(default_factory=dict)
    done: dict[bytes, Finished] = field(default_factory=dict)
    #: By place.
    reached: dict[bytes, Reached] = field(default_factory=dict)

    def apply(self, batch: Batch, now: float, options: StoreOptions) -> Answers:
        """Apply ``batch`` as at ``now``, in the order that :class:`Batch` promises."""
        dead = frozenset(batch.dead)
        return Answers(
            [self._complete(entry, now, options) for entry in batch.completes],
            [self._release(entry, now) for entry in batch.releases],
            [self._renew(entry, now, options) for entry in batch.renewals],
            [self._claim(entry, dead, now, options) for entry in batch.claims],
            self._revisions(batch, now, options),
        )

    def forget(
        self, records: Sequence[bytes], now: float, options: StoreOptions
    ) -> AbstractSet[bytes]:
        """Make these absent but for those that a token owns; return the latter."""
        claimed = {record for record in records if self._is_claimed(record, now, options)}
        for record in {*records} - claimed:
            self.held.pop(record, None)
            self.done.pop(record, None)
        return claimed

    def _revisions(self, batch: Batch, now: float, options: StoreOptions) -> tuple[int | None, ...]:
        for mark in batch.marks:
            self._mark(mark, now, options)
        return tuple(self._revision(place, now) for place in batch.looks)

    def _mark(self, mark: Mark, now: float, options: StoreOptions) -> None:
        last = self._revision(mark.place, now)
        if last is None or last <= mark.revision:
            self.reached.pop(mark.place, None)  # it goes to the end: the first expires first
            self.reached[mark.place] = Reached(mark.revision, now + options.revision_retention)

    def _revision(self, place: bytes, now: float) -> int | None:
        reached = self.reached.get(place)
        return None if reached is None or reached.expires <= now else reached.revision

    def _is_claimed(self, record: bytes, now: float, options: StoreOptions) -> bool:
        held = self.held.get(record)
        if held is None or held.deadline + options.claim_memory <= now:
            return False
        return held.token not in {None, NOBODY}

    def _complete(self, entry: Complete, now: float, options: StoreOptions) -> Answer:
        finished = self.done.get(entry.record)
        if finished is not None and finished.expires > now:
            return Answer.ALREADY_DONE
        held = self.held.get(entry.record)
        owner = None if held is None else held.token
        if owner != entry.token and (owner not in {None, NOBODY} or not entry.effect):
            return Answer.STALE
        self.held.pop(entry.record, None)
        self.done[entry.record] = Finished(entry.fingerprint, now + options.retention)
        return Answer.KEPT

    def _release(self, entry: Release, now: float) -> Answer:
        held = self.held.get(entry.record)
        if held is None or held.token != entry.token:
            return Answer.STALE
        if entry.wait > 0:
            self.held[entry.record] = held._replace(
                token=NOBODY, deadline=now + entry.wait, span=entry.wait
            )
            return Answer.KEPT
        attempts = held.attempts - entry.refund
        if attempts == 0:  # then crashes is too: each came with an attempt
            del self.held[entry.record]
        else:
            self.held[entry.record] = Held(None, now, 0.0, attempts, held.crashes)
        return Answer.KEPT

    def _renew(self, entry: Renew, now: float, options: StoreOptions) -> Answer:
        held = self.held.get(entry.record)
        if held is None or held.token != entry.token:
            return Answer.STALE
        ttl = options.claim_ttl
        self.held[entry.record] = held._replace(deadline=now + ttl, span=ttl)
        return Answer.KEPT

    def _claim(
        self, entry: Claim, dead: AbstractSet[bytes], now: float, options: StoreOptions
    ) -> Verdict:
        finished = self.done.get(entry.record)
        if finished is not None and finished.expires > now:
            return _DUPLICATE if finished.fingerprint == entry.fingerprint else _CONFLICT
        held = self.held.get(entry.record)
        if held is not None:
            held = self.held[entry.record] = held.seen(now)
        verdict = judge_claim(entry, held, dead, now, options)
        if verdict.answer is Answer.FRESH:
            ttl = options.claim_ttl
            self.held[entry.record] = Held(
                entry.token, now + ttl, ttl, verdict.attempts, verdict.crashes
            )
        return verdict


@dataclass(slots=True)
class Memory:
    """What several handles of one memory store share, and the lock that guards it."""

    records: Records = field(default_factory=Records)
    parked: dict[str, dict[str, int]] = field(default_factory=dict)
    lock: Lock = field(default_factory=Lock)
    next_sweep: float = 0.0

    def drop_expired(self, now: float, options: StoreOptions) -> None:
        """Drop what has expired. The lock is held by the caller."""
        _drop_first(self.records.done, now)
        _drop_first(self.records.reached, now)
        if now >= self.next_sweep:
            self.next_sweep = now + options.claim_memory / 8
            horizon = now - options.claim_memory
            held = self.records.held
            for record in [record for record, entry in held.items() if entry.deadline <= horizon]:
                del held[record]


def _drop_first(entries: dict[bytes, Any], now: float) -> None:
    """Drop the first entries, as far as they have expired.

    Insertion order is expiry order where every handle has one retention; where not, a long-lived
    one delays the purge of those behind it, never an answer.
    """
    while entries:
        oldest = next(iter(entries))
        if entries[oldest].expires > now:
            break
        del entries[oldest]


@dataclass(slots=True)
class _Named:
    """The memories of this process by name."""

    memories: dict[str, Memory] = field(default_factory=dict)
    lock: Lock = field(default_factory=Lock)

    def get(self, name: str) -> Memory:
        with self.lock:
            return self.memories.setdefault(name, Memory())


#: The one piece of module state: ``memory://NAME`` must mean the same records to every thread
#: that opens it, each with a handle of its own, and must outlive the last handle (a consumer
#: that is started again in the same process may not forget). A URL can carry a name only, so
#: what the name stands for has to be found from here; a server plays this part elsewhere.
_NAMED = _Named()


class MemoryStore(DedupStore):
    """A store in this process's memory. Unlike the others it may be used by several threads.

    ``MemoryStore(options)`` has records of its own; pass one ``memory`` to several to share it.
    ``clock`` returns seconds and never goes back.
    """

    tier = "memory: ids are known until the process ends, and to no other process"
    shared = False
    keeps_revisions = True

    def __init__(
        self,
        options: StoreOptions,
        clock: Callable[[], float] = time.monotonic,
        memory: Memory | None = None,
    ) -> None:
        self._options = options
        self._clock = clock
        self._memory = Memory() if memory is None else memory

    @classmethod
    def open(cls, url: str, options: StoreOptions) -> MemoryStore:
        """Open ``memory://NAME``: the same records for all who open NAME in this process."""
        if not url.startswith(_SCHEME) or "?" in url:
            raise ConfigurationError(
                f"dedup URL {url!r}: a memory store is memory://NAME, without options"
            )
        return cls(options, memory=_NAMED.get(url.removeprefix(_SCHEME)))

    def apply(self, batch: Batch) -> Answers:
        """Apply the whole batch; never fails, never waits but for another thread's batch."""
        with self._memory.lock:
            now = self._clock()
            self._memory.drop_expired(now, self._options)
            return self._memory.records.apply(batch, now, self._options)

    def forget(self, records: Sequence[bytes]) -> AbstractSet[bytes]:
        """Make the records absent that nobody owns; return the others."""
        with self._memory.lock:
            return self._memory.records.forget(records, self._clock(), self._options)

    def warnings(self) -> list[str]:
        """Tell that the process's end is the end of the memory."""
        return [_WARNING]

    def mark_parked(self, service: str, key: str, at: int) -> None:
        """Note that a message of ``key`` was parked ``at``; the highest number stands."""
        with self._memory.lock:
            keys = self._memory.parked.setdefault(service, {})
            keys[key] = max(at, keys.get(key, at))

    def parked(self, service: str) -> Mapping[str, int]:
        """Return a copy of the parked keys of ``service`` and their numbers."""
        with self._memory.lock:
            return dict(self._memory.parked.get(service, {}))

    def unpark(self, service: str, key: str, upto: int) -> bool:
        """Forget ``key`` unless it was parked after ``upto``."""
        with self._memory.lock:
            keys = self._memory.parked.get(service, {})
            if key not in keys or keys[key] > upto:
                return False
            del keys[key]
            return True

    def close(self) -> None:
        """Do nothing: the records belong to the name, not to this handle."""
