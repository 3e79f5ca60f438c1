"""Slots: the small numbers that stand for keys between publishers and shards. Pure.

A publisher knows the slot of a key and nothing of shards; a service binds every slot to one of its
shard queues. So where a key goes rests on bindings, which a broker keeps through a restart, and on
nothing that it would compute anew. (RabbitMQ's consistent-hash exchange rebuilds its ring at a
restart, in another order of its bindings: tried on 3.10, it sent half of the keys elsewhere.)

The slot is the CRC-32 of the key (ISO 3309, as in zlib) modulo 1,024, because every language has
that at hand. It is on disk, in which queue a key's messages are waiting: changing anything here
moves keys, and ``tests/unit/test_slots.py`` pins it.
"""

from __future__ import annotations

from zlib import crc32

#: Enough that up to about 50 shards differ by a few percent, few enough to be bound in a moment.
SLOTS = 1024
#: One word, so that of all topic patterns only ``*`` takes it beside those that take everything.
_ROUTING_KEYS = tuple(f"qw-slot-{slot}" for slot in range(SLOTS))


def slot_of(key: str) -> int:
    """Return the slot of ``key``: of a message without a key, its id."""
    return crc32(key.encode("utf-8", "surrogatepass")) % SLOTS


def slot_routing_key(slot: int) -> str:
    """Return the routing key that says so to brokers."""
    return _ROUTING_KEYS[slot]


def shard_of(key: str, shards: int) -> int:
    """Return the shard that has ``key``."""
    return slot_of(key) % shards


def slots_of(shard: int, shards: int) -> range:
    """Return the slots of one of ``shards`` shards."""
    return range(shard, SLOTS, shards)
