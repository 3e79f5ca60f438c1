"""The protocol of a lease store: who is there, who owns what, and what the service has planned.

One call, :meth:`LeaseStore.sync`, is a member's sign of life: it says what the member renews, gives
back and asks for, and returns the whole picture, all in one atomic step. There are three kinds of
things in it, each under the name of a service:

* *Members*: one life of one supervisor each, with facts that only others like it read.
* *Leases*: a name (of a shard, say), its owner and its **epoch**. The epoch rises with every change
  of owner and is the fence that handlers see.
* *Documents*: small texts with a version, changed by compare-and-set.

Invariants that every store keeps, and that ``worker.testing.lease_suite`` checks:

* A lease has one owner at most until it was released, or the store has *watched* it go without
  renewal for its whole length.
* Watched time is the sum of the times between two calls for a service, of which each counts no more
  than an eighth of the length of a lease. So neither a step of the server's clock nor its absence
  ends a lease whose holder still trusts it. Leases that a service left behind as it died at once
  are free only after others have watched them for as long.
* Watched time never falls, but where the store forgot, or went back to an earlier state: so a
  member that called before finds out.
* An epoch never falls, and rises when the owner changes: a new one is above every one that the
  service had before, of whatever lease, because what one lease covers may come to another. It is at
  least the store's wall clock in milliseconds at that time, so that also a store that forgot
  everything hands out none twice.
* A renewal that the store knows nothing of, because it forgot, makes the lease anew.
* Sending the same ``Sync`` twice (the first answer was lost) gives the same end state.

A holder trusts a lease until the *start* of the call that renewed it plus its length less a
margin, by its own :func:`lease_clock` (:func:`trusted_until`); past that it begins nothing,
whatever the reason.

Leases with a fence are described by Gray and Cheriton, "Leases: An Efficient Fault-Tolerant
Mechanism for Distributed File Cache Consistency" (1989), and by Burrows, "The Chubby Lock Service
for Loosely-Coupled Distributed Systems" (2006), as sequencers.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_GOES_ON = hasattr(time, "CLOCK_BOOTTIME")
#: Characters of a member's facts, and of a document, at most.
MAX_TEXT = 512 * 1024
#: One call for a service counts as at most this share of a lease's length of watching.
STEP_SHARE = 8
#: The share of a lease's length that its holder does not trust: the clocks of two machines may
#: differ in speed, and a thread may wait for a core.
_MARGIN_SHARE = 0.15
#: Lengths of a lease after which what nobody owns is forgotten.
MEMORY_LENGTHS = 1000


@dataclass(frozen=True, slots=True)
class LeaseOptions:
    """What a lease store is opened with. Durations in seconds."""

    #: How long a lease, and a membership, lasts without renewal.
    ttl: float = 10.0
    #: How long the store may take to answer before it counts as away.
    timeout: float = 2.0


class Held(NamedTuple):
    """A lease that its owner has held: its name, and the epoch that it was granted with."""

    name: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Sync:
    """What a member says. Applied in this order: releases, renewals, acquisitions.

    With ``leaving`` the member is gone after it, whatever it held; what it still held stays its
    own until that expires.
    """

    member: str
    #: A text that the other members get to see, up to MAX_TEXT characters.
    facts: str = ""
    release: Sequence[Held] = ()
    renew: Sequence[Held] = ()
    #: Leases to become the owner of, if they are free.
    acquire: Sequence[str] = ()
    leaving: bool = False


class Lease(NamedTuple):
    """A lease that somebody owns. ``left`` is in seconds, by the time that the store watched."""

    owner: str
    epoch: int
    left: float


class Document(NamedTuple):
    """A text; ``version`` rises by one with each change, from 1. It is never removed."""

    version: int
    text: str


@dataclass(frozen=True, slots=True)
class View:
    """All that the store knows of a service, at one moment."""

    #: The living members: id to facts.
    members: Mapping[str, str] = field(default_factory=dict)
    #: The leases that somebody owns, by name.
    leases: Mapping[str, Lease] = field(default_factory=dict)
    documents: Mapping[str, Document] = field(default_factory=dict)
    #: Seconds for which nothing new is granted, because the store may have forgotten who owns it.
    settling: float = 0.0
    #: The seconds that the store has watched this service. Where they fell, it forgot something.
    watched: float = 0.0

    def held_by(self, member: str) -> dict[str, int]:
        """Return the epochs of the leases that ``member`` owns, by name."""
        return {n: lease.epoch for n, lease in self.leases.items() if lease.owner == member}


class LeaseStore(Protocol):
    """A store of leases. One thread uses an instance at a time.

    Every method but ``close`` raises LeasesUnavailable while the store is away: then nothing is
    known of what the call did.
    """

    #: Whether other machines see the same leases, in one line for ``qworker check``.
    reach: str

    @classmethod
    def open(cls, url: str, options: LeaseOptions) -> LeaseStore:
        """Connect. Raises ConfigurationError (bad URL) or LeasesUnavailable (not there)."""
        ...

    def sync(self, service: str, sync: Sync) -> View:
        """Apply ``sync`` in one atomic step and return what is known after it.

        Raises ValueError for facts that are too long.
        """
        ...

    def look(self, service: str) -> View:
        """Return what is known, and change nothing."""
        ...

    def write(self, service: str, name: str, version: int, text: str) -> bool:
        """Change the document ``name`` if its version is ``version`` (0: there is none).

        Tells whether it was changed; of a call whose answer was lost, the next ``look`` tells.
        Raises ValueError for a text that is too long.
        """
        ...

    def close(self) -> None:
        """Let go of the connection; the leases stay until they expire."""
        ...


def lease_clock() -> float:
    """Return the seconds of the clock that holders of leases go by.

    It is monotonic, the same for all processes of a machine, and goes on while that is suspended
    (Linux: CLOCK_BOOTTIME of clock_gettime(2)), as the clock of a server elsewhere does.
    """
    return time.clock_gettime(time.CLOCK_BOOTTIME) if _GOES_ON else time.monotonic()


def suspended() -> float:
    """Return the seconds that the ``lease_clock`` is ahead of the monotonic one.

    It grows while the machine is suspended, and at no other time.
    """
    return lease_clock() - time.monotonic()


def trusted_until(asked_at: float, ttl: float) -> float:
    """Return until when a holder may trust what was renewed by a call begun at ``asked_at``.

    Both are readings of the holder's :func:`lease_clock`.
    """
    return asked_at + ttl * (1.0 - _MARGIN_SHARE)


def check_text(text: str, what: str) -> None:
    """Raise ValueError where a text is too long to be kept."""
    if len(text) > MAX_TEXT:
        raise ValueError(f"{what}: {len(text)} characters; at most {MAX_TEXT}")
