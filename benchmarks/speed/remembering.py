"""Puts ids into a store that nobody will ask for: what a service has done in the past."""

from __future__ import annotations

import os
import time
import uuid

import redis

from speed.site import Unfinished
from worker.dedup.base import (
    FINGERPRINT_BYTES,
    TOKEN_BYTES,
    Batch,
    Complete,
    StoreOptions,
    record_ids,
)
from worker.dedup.open import open_store
from worker.ids import new_id

_BATCH = 500
_DAY = 86_400
_TIMEOUT = 30.0
_PATIENCE, _LOOK = 120.0, 0.1


def remember(url: str, ids: int, *, random_ids: bool = False) -> None:
    """Have a dedup store of qworker remember so many, by the calls that a worker makes.

    They were made in the course of a day, at one pace, or say nothing of when (``random_ids``).
    """
    store = open_store(url, StoreOptions(timeout=_TIMEOUT))
    record_id, first = record_ids("speed.handle"), time.time() - _DAY

    def record(number: int) -> bytes:
        return record_id(str(uuid.uuid4()) if random_ids else new_id(first + number * _DAY / ids))

    try:
        for begin in range(0, ids, _BATCH):
            completes = [
                Complete(record(number), os.urandom(TOKEN_BYTES), os.urandom(FINGERPRINT_BYTES))
                for number in range(begin, min(begin + _BATCH, ids))
            ]
            store.apply(Batch(completes=completes))
    finally:
        store.close()


def tidied_up(url: str) -> None:
    """Have a Redis rewrite its log, which a million ids made long, before anything is measured."""
    with redis.Redis.from_url(url) as client:
        client.bgrewriteaof()
        deadline = time.monotonic() + _PATIENCE
        while client.info("persistence")["aof_rewrite_in_progress"]:
            if time.monotonic() > deadline:
                raise Unfinished(f"Redis rewrites its log for more than {_PATIENCE:.0f} s")
            time.sleep(_LOOK)


def mark(url: str, ids: int) -> None:
    """Remember so many as the hand-written dedup does: a key for each."""
    with redis.Redis.from_url(url) as client:
        for begin in range(0, ids, _BATCH):
            pipeline = client.pipeline(transaction=False)
            for _ in range(min(_BATCH, ids - begin)):
                pipeline.set(f"done:{uuid.uuid4()}", 1, nx=True, ex=_DAY)
            pipeline.execute()


def memory_of(url: str) -> int:
    """Return the bytes that the whole server uses."""
    with redis.Redis.from_url(url) as client:
        return int(client.info("memory")["used_memory"])
