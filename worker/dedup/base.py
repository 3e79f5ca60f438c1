"""The protocol of a dedup store: claims in batches, every later change by compare-and-set.

A record belongs to one (handler, message id) and moves::

    absent ──claim──> claimed(token, deadline, attempts, crashes) ──complete──> done(fingerprint)
                        │    ^
                  release    claim (attempts + 1)
                        v    │
                      idle(attempts, crashes)

*Idle* is a record that nobody owns: its owner gave it back. It may have been given back with a
*wait*: then it cannot be claimed before that is over. A *claimed* record whose deadline
passed, or whose owner is known to be dead, is a **suspect**: its last owner may have been killed
by this very message. A plain claim does not take a suspect; it is told so, and claims again
with ``solo=True`` when it can run the message alone.

Invariants that every store keeps, and that ``worker.testing.dedup_suite`` checks:

* At most one token owns a record at any time by the *store's* clock.
* ``complete``, ``release`` and ``renew`` change a record only where their token owns it, with
  one exception that is no exception to ownership: ``complete`` also marks a record that nobody
  owns (absent, or idle), because the effect did happen and no other owner can contradict it. (Not
  so ``complete`` without an effect: what was set aside may have been made forgotten since.)
* A record that is done stays done, with its fingerprint, for at least ``retention`` seconds.
* ``attempts`` is counted in the same atomic step as the claim, before any user code can run.
* Applying the same batch twice (the first answer was lost) gives the same end state: a claim
  by the token that already owns the record answers FRESH without counting again, and a
  completion of a done record answers ALREADY_DONE.

Beside its records a store keeps *revisions*: of each (handler, key) the highest one of which the
effect happened. A batch brings the revisions of what it completes (:class:`Mark`) and asks for
those that its claims are judged by. A revision is marked whatever its completion is answered, since
its effect did happen; it never falls, and is remembered for at least ``revision_retention`` seconds
from when it was last marked. Where a batch cannot be one atomic step (a cluster), that comes first.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple, Protocol
from zlib import crc32

from worker.ids import front_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from collections.abc import Set as AbstractSet

#: Bytes of a record id: the time of a UUIDv7, or of the one that it is derived from, and a BLAKE2b
#: digest of (handler, message id) that fills it up. Records of one time are neighbours in a tree
#: that is sorted by them, so that what is added to a long past shares pages with what was added
#: just before. Of other ids it is all digest.
RECORD_BYTES = 16
#: Bytes of the time, a unit of which is 256 ms. What follows is spread evenly, whatever the ids.
TIME_BYTES = 5
#: Bytes of an owner: one life of one consumer process.
OWNER_BYTES = 8
#: Bytes of a token: the owner and its own counter, so that every claim has its own.
TOKEN_BYTES = OWNER_BYTES + 4
#: The token of a record that was given back with a wait: no claim has it.
NOBODY = bytes(TOKEN_BYTES)
#: Bytes of a fingerprint of a payload.
FINGERPRINT_BYTES = 4
#: The highest revision that there can be.
MOST_REVISION = 2**63 - 1


def record_ids(handler: str, *, of: str = "") -> Callable[[str], bytes]:
    """Return the function from a message id to the record of it at ``handler``.

    Handler names contain no NUL, so (handler, id) is encoded without ambiguity. ``of`` (up to 16
    bytes) parts the records of something else than ids from those of ids.
    """
    seed = blake2b(handler.encode() + b"\0", digest_size=RECORD_BYTES, person=of.encode())

    def record_id(message_id: str) -> bytes:
        digest = seed.copy()
        digest.update(message_id.encode("utf-8", "surrogatepass"))
        record = digest.digest()
        front = front_of(message_id)
        return record if front is None else front[:TIME_BYTES] + record[TIME_BYTES:]

    return record_id


def fingerprint(body: bytes) -> bytes:
    """Return four bytes that differ for another payload, but for one chance in 2**32."""
    return crc32(body).to_bytes(FINGERPRINT_BYTES, "big")


class Claim(NamedTuple):
    """Ask to own ``record``. ``solo``: also where it is a suspect, which then runs alone."""

    record: bytes
    token: bytes
    fingerprint: bytes
    solo: bool = False


class Complete(NamedTuple):
    """``record`` is done: remember its id for the retention.

    ``effect``: its effect happened. What was set aside had none, so it is done only where the token
    owns the record; where that is nobody's by now, a replay made it forgotten, to run it again.
    """

    record: bytes
    token: bytes
    fingerprint: bytes
    effect: bool = True


class Release(NamedTuple):
    """Give ``record`` back. ``refund``: user code never ran, so the attempt is not counted.

    ``wait``: for so many seconds nobody may claim it. It is a retry that is not due, or its user
    code may still run, and an owner that is about to end says so instead of leaving a suspect.
    What is given back with a wait has run: ``refund`` has no say.
    """

    record: bytes
    token: bytes
    refund: bool = False
    wait: float = 0.0


class Renew(NamedTuple):
    """Own ``record`` for another ``claim_ttl`` from now."""

    record: bytes
    token: bytes


class Mark(NamedTuple):
    """The effect of ``revision`` happened; ``place`` is as the record of (handler, key)."""

    place: bytes
    revision: int


class Answer(IntEnum):
    """What a store says to one claim, completion, release or renewal."""

    #: claim: it is yours. ``attempts`` includes this one.
    FRESH = 1
    #: claim: this id was done before.
    DUPLICATE = 2
    #: claim: a living owner has it; ask again in ``wait`` seconds at the latest.
    BUSY = 3
    #: claim: this id was done before with another payload.
    CONFLICT = 4
    #: claim without ``solo``: its last owner died with it; nothing was changed.
    SUSPECT = 5
    #: complete, release, renew: done as asked.
    KEPT = 6
    #: complete: the record was done already (by you, where your first answer got lost).
    ALREADY_DONE = 7
    #: complete, release, renew: the token does not own the record; nothing was changed.
    STALE = 8
    #: claim: nobody owns it, but it was given back with a wait, which is over in ``wait`` seconds.
    LATER = 10


class Verdict(NamedTuple):
    """The answer to a claim.

    ``attempts`` counts the claims of this record that were not refunded. ``crashes`` counts the
    owners that died with it, as far as that is known: a solo claim of a suspect adds one for
    the owner that left it. ``wait`` is in seconds: BUSY, until the claim's deadline; LATER, until
    it can be claimed.
    """

    answer: Answer
    attempts: int = 0
    crashes: int = 0
    wait: float = 0.0


@dataclass(slots=True)
class Batch:
    """Everything that one tick has to say to the store, carried by one round trip.

    Applied in this order: completions, releases, renewals, claims, marks, looks. So a record that
    is completed and claimed in one batch answers DUPLICATE, and one that is released and claimed
    in one batch answers FRESH.
    """

    completes: list[Complete] = field(default_factory=list)
    releases: list[Release] = field(default_factory=list)
    renewals: list[Renew] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    #: Owners that are known to be dead (their process was reaped): their claims are suspects
    #: at once, without waiting for the deadline.
    dead: Collection[bytes] = ()
    marks: list[Mark] = field(default_factory=list)
    #: The places whose revisions are asked for.
    looks: list[bytes] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(
            self.completes
            or self.releases
            or self.renewals
            or self.claims
            or self.marks
            or self.looks
        )


class Answers(NamedTuple):
    """One answer per entry of the batch, in the batch's order."""

    completes: list[Answer]
    releases: list[Answer]
    renewals: list[Answer]
    claims: list[Verdict]
    #: The highest revision that was marked at each place that was looked at; None: none is known.
    revisions: Sequence[int | None] = ()


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """What a store is opened with. All durations in seconds."""

    #: How long a claim lives without renewal.
    claim_ttl: float = 10.0
    #: How long a done id is remembered, at least.
    retention: float = 7 * 86400.0
    #: How long the store may take to answer before it counts as away.
    timeout: float = 2.0
    #: How long the last revision of a key is remembered after it rose, at least.
    revision_retention: float = 90 * 86400.0

    @property
    def claim_memory(self) -> float:
        """How long a record that is not done keeps its attempts and crashes.

        Counted from when it was given back or its deadline passed. Never less than a day, so
        that a poison message is still known as one after a long back-off or outage.
        """
        return max(self.retention, 86400.0)


class DedupStore(Protocol):
    """A store of records. One thread uses an instance at a time; open one per thread.

    A store is made by ``Store.open(url, options)`` and knows the sets of parked keys too, since
    these must be as durable as the ids.
    """

    #: How strong the memory is, in one line for ``qworker check`` and the log.
    tier: str
    #: Whether other processes see the same records.
    shared: bool
    #: Whether it keeps revisions. One that has no such attribute keeps none.
    keeps_revisions: bool

    @classmethod
    def open(cls, url: str, options: StoreOptions) -> DedupStore:
        """Connect. Raises ConfigurationError (bad URL) or DedupUnavailable (not there)."""
        ...

    def apply(self, batch: Batch) -> Answers:
        """Apply the whole batch in one round trip and return its answers.

        Raises DedupUnavailable when the store is away: then nothing is known of the batch, and
        the caller applies the same batch again later. Never blocks past ``options.timeout`` by
        much. Reconnects by itself.
        """
        ...

    def forget(self, records: Sequence[bytes]) -> AbstractSet[bytes]:
        """Make each record absent that is done or idle; return those that are claimed.

        One that is claimed stays as it is, also where its deadline passed: as long as nobody else
        took it, its owner may still complete it. For replays: what was set aside counts as done,
        and must run again. Raises DedupUnavailable; forgetting twice is harmless.
        """
        ...

    def warnings(self) -> list[str]:
        """Tell what makes this store weaker than it says (an evicting Redis, say).

        Raises ConfigurationError where starting at all would be a lie.
        """
        ...

    def mark_parked(self, service: str, key: str, at: int) -> None:
        """Note that a message of ``key`` was parked ``at``, a number that rises with time.

        A key is parked from the first call on, until ``unpark``. Its highest number stands, so
        that calling twice, or late, is harmless. Numbers are below 2**53.
        """
        ...

    def parked(self, service: str) -> Mapping[str, int]:
        """Return every parked key of ``service`` with the last number that it was parked at."""
        ...

    def unpark(self, service: str, key: str, upto: int) -> bool:
        """Forget that ``key`` is parked unless it was parked after ``upto``; tell whether it was.

        False where it was not parked, too.
        """
        ...

    def close(self) -> None:
        """Let go of the connection; the records stay."""
        ...


class Held(NamedTuple):
    """A record that is not done: claimed by ``token``, or idle where that is None.

    ``deadline`` is the end of the claim; of an idle record it is when it was given back. One that
    was given back with a wait has the token NOBODY, and its deadline is the end of that. ``span``
    are the seconds that the deadline was away when it was set.
    """

    token: bytes | None
    deadline: float
    span: float
    attempts: int
    crashes: int

    def seen(self, now: float) -> Held:
        """Return the record as whoever looks at it writes it back: its end is never farther away.

        A clock that is set back by an hour must not keep a claim, or a wait, for an hour. From the
        look on it lasts as long as it was meant to in all, and its owner renews it well before.
        """
        return self._replace(deadline=min(self.deadline, now + self.span))


def judge_claim(
    claim: Claim, held: Held | None, dead: AbstractSet[bytes], now: float, options: StoreOptions
) -> Verdict:
    """Return what a store that keeps records as :class:`Held` answers to a claim as at ``now``.

    The record is not done. Where the answer is FRESH, the token of the claim has it from now on.
    """
    if held is None or held.deadline + options.claim_memory <= now:
        owner, deadline, attempts, crashes = None, now, 0, 0
    else:
        owner, deadline, _, attempts, crashes = held
    if owner == NOBODY and deadline > now:
        return Verdict(Answer.LATER, attempts, crashes, deadline - now)
    if owner in {None, NOBODY}:
        attempts += 1
    elif owner != claim.token:
        if deadline > now and owner[:OWNER_BYTES] not in dead:
            return Verdict(Answer.BUSY, attempts, crashes, deadline - now)
        if not claim.solo:
            return Verdict(Answer.SUSPECT, attempts, crashes)
        attempts, crashes = attempts + 1, crashes + 1
    return Verdict(Answer.FRESH, attempts, crashes)


def begin(store: DedupStore, batch: Batch) -> Callable[[], Answers]:
    """Begin to apply ``batch``; the call that is returned does the rest of ``store.apply``.

    It is made soon, and before anything else is asked of the store. A store whose server can work
    while its caller does something else has a method ``begin(batch)`` that sends the batch; for
    every other store nothing happens before that call.
    """
    own: Callable[[Batch], Callable[[], Answers]] | None = getattr(store, "begin", None)
    return partial(store.apply, batch) if own is None else own(batch)
