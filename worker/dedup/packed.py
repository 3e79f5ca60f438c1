"""A batch and its answers as bytes, for stores whose rules run in their server.

An entry is its record, its token, its fingerprint and its kind, ``ENTRY_BYTES`` in all; the kinds
are C (complete), A (complete, without an effect), R (release), F (release, refunded), W (release
with a wait, whose milliseconds are where the others have the fingerprint), N (renew), K (claim), S
(claim, solo) and X (forget); M (mark, whose revision is the first eight bytes of the token) and L
(look) have a place where the others have the record.

A reply is a byte for each entry, and the details of those that a byte cannot tell.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from worker.dedup.base import TOKEN_BYTES, Answer, Answers, Batch, Verdict
from worker.errors import StoreCorrupt

if TYPE_CHECKING:
    from collections.abc import Sequence

ENTRY_BYTES = 33
#: Answer, attempts, crashes, milliseconds to wait; _REVISION, 0, 0, a revision.
_DETAIL = struct.Struct(">BIIQ")
_REVISION = 11
#: What stands for a revision where none is known.
_NO_REVISION = -1
_MARK = struct.Struct(">16sQ8xc")
_NO_FINGERPRINT = bytes(4)
#: What the bytes of a reply mean; 0: it is told in full behind the last of them.
_MEANINGS: dict[int, Answer | Verdict | int | None] = {
    0: None,
    2: Verdict(Answer.DUPLICATE),
    4: Verdict(Answer.CONFLICT),
    6: Answer.KEPT,
    7: Answer.ALREADY_DONE,
    8: Answer.STALE,
    9: Verdict(Answer.FRESH, 1),
    12: _NO_REVISION,
}


def milliseconds(seconds: float) -> int:
    """Return a duration as servers count it; one at least."""
    return max(1, round(seconds * 1000))


def pack(batch: Batch) -> list[bytes]:
    """Return the entries of ``batch`` that are about records, in the order of their appliance.

    Those of :func:`pack_marks` and :func:`pack_looks` come behind them.
    """
    join = b"".join
    entries = [
        join((record, token, fingerprint, b"C" if effect else b"A"))
        for record, token, fingerprint, effect in batch.completes
    ]
    entries += [
        join((record, token, _wait(wait), b"W"))
        if wait > 0
        else join((record, token, _NO_FINGERPRINT, b"F" if refund else b"R"))
        for record, token, refund, wait in batch.releases
    ]
    entries += [join((*entry, _NO_FINGERPRINT, b"N")) for entry in batch.renewals]
    entries += [
        join((record, token, fingerprint, b"S" if solo else b"K"))
        for record, token, fingerprint, solo in batch.claims
    ]
    if not {ENTRY_BYTES}.issuperset(map(len, entries)):
        raise ValueError("a record, token or fingerprint of the batch has a wrong length")
    return entries


def pack_marks(batch: Batch) -> list[bytes]:
    """Return the entries that mark revisions: one a place, and the highest of it."""
    highest: dict[bytes, int] = {}
    for place, revision in batch.marks:
        highest[place] = max(revision, highest.get(place, 0))
    return [_MARK.pack(place, revision, b"M") for place, revision in highest.items()]


def pack_looks(batch: Batch) -> list[bytes]:
    """Return the entries that look at revisions."""
    return [place + bytes(TOKEN_BYTES) + _NO_FINGERPRINT + b"L" for place in batch.looks]


def pack_forgotten(record: bytes) -> bytes:
    """Return the entry that makes a record forgotten."""
    return record + bytes(TOKEN_BYTES) + _NO_FINGERPRINT + b"X"


def unpack(reply: bytes, count: int) -> list[Any]:
    """Return the answers and verdicts of ``count`` entries. Raises StoreCorrupt."""
    try:
        details = _DETAIL.iter_unpack(reply[count:])
        found = [_MEANINGS[code] or _verdict(*next(details)) for code in reply[:count]]
    except (LookupError, TypeError, ValueError, StopIteration, struct.error):
        found = []
    if len(found) != count:
        raise StoreCorrupt(f"the dedup store gave no answers to {count} entries: {reply!r:.99}")
    return found


def answered(batch: Batch, found: list[Any], revisions: Sequence[int] = ()) -> Answers:
    """Return what was unpacked as the answers to the parts of ``batch``.

    ``found`` are those of :func:`pack`; of ``revisions`` a negative one stands for none.
    """
    released = len(batch.completes)
    renewed = released + len(batch.releases)
    claimed = renewed + len(batch.renewals)
    return Answers(
        found[:released],
        found[released:renewed],
        found[renewed:claimed],
        found[claimed:],
        tuple(None if revision < 0 else revision for revision in revisions),
    )


def _wait(seconds: float) -> bytes:
    """Return a wait; up to 49 days."""
    return min(milliseconds(seconds), 2**32 - 1).to_bytes(4, "big")


def _verdict(answer: int, attempts: int, crashes: int, wait: int) -> Verdict | int:
    if answer == _REVISION:
        return wait
    return Verdict(Answer(answer), attempts, crashes, wait / 1000)
