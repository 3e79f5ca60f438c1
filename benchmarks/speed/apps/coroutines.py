"""What every handler does that is a coroutine: ``work`` for those that never block."""

from __future__ import annotations

import asyncio
import os

from speed.apps.work import DAY, MARK, SLEEP, WORK, compute, note
from speed.load import ASYNCHRONOUS, COMPUTING, SLEEPING

if MARK:
    import redis.asyncio

    # 100 by default: more coroutines at once would fail, and their messages be lost.
    _store = redis.asyncio.Redis.from_url(os.environ["REDIS_URL"], max_connections=256)


async def work(number: int) -> None:
    """Do what a coroutine does."""
    if WORK in {ASYNCHRONOUS, SLEEPING}:
        await asyncio.sleep(SLEEP)
    elif WORK == COMPUTING:
        compute()
    note(number)


async def work_once(ident: str, number: int) -> None:
    """Do it unless Redis says that it was done."""
    if not MARK or await _store.set(f"done:{ident}", 1, nx=True, ex=DAY):
        await work(number)
