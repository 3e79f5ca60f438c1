"""Which member should have which shard. Pure: every member computes the same from the same view.

1. Everybody's *quota* is the shards divided by the members, rounded down or up, so that nobody has
   more than one above another. Those who have the larger number already are the first to keep it.
2. A member keeps what it owns, up to its quota. What is above goes.
3. What nobody keeps goes to the first member after it on the hash ring that has room: consistent
   hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam, "Consistent Hashing with Bounded
   Loads", 2018), with the tightest bound there is.

So a member that joins or leaves moves as few shards as any balanced assignment has to move. And
the answer stays the same while it is being carried out, shard by shard and in any order, so
members that see different moments of it do not work against each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from worker.sharding.ring import Ring

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence


def assign(
    shards: Sequence[str], members: Collection[str], owners: Mapping[str, str]
) -> dict[str, str]:
    """Return the member that each of ``shards`` should belong to; empty without ``members``.

    ``owners`` says who owns a shard now; what it says of others than ``members`` does not count.
    """
    if not members:
        return {}
    ring = Ring(dict.fromkeys(members, 1))
    held: dict[str, list[str]] = {member: [] for member in members}
    for shard in shards:
        owner = owners.get(shard)
        if owner in held:
            held[owner].append(shard)
    room = _quotas(len(shards), held)
    assigned: dict[str, str] = {}
    for member, own in held.items():
        kept = own if len(own) <= room[member] else _nearest(own, member, ring)[: room[member]]
        assigned.update(dict.fromkeys(kept, member))
        room[member] -= len(kept)
    for shard in shards:
        if shard not in assigned:
            member = next(name for name in ring.preferences(shard) if room[name] > 0)
            assigned[shard] = member
            room[member] -= 1
    return assigned


def _quotas(shards: int, held: Mapping[str, Collection[str]]) -> dict[str, int]:
    """Return how many shards each member gets.

    Whoever has more than the smaller number is preferred for the larger one; by how much it has
    more does not count, because that changes while shards move.
    """
    fewer, larger = divmod(shards, len(held))
    ranked = sorted(held, key=lambda member: (len(held[member]) <= fewer, member))
    return {member: fewer + (rank < larger) for rank, member in enumerate(ranked)}


def _nearest(shards: Collection[str], member: str, ring: Ring) -> list[str]:
    """Return ``shards`` with those first that would come to ``member`` soonest on the ring."""
    return sorted(shards, key=lambda shard: ([*ring.preferences(shard)].index(member), shard))
