"""What every handler does, and the dedup that people write by hand. Set by the environment.

``BOOKINGS`` is the file of effects, ``MARK`` says when an id is marked as done: ``before`` its
effect, by one SET NX, or ``after`` it, with a look before.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import redis

from peers.history import BEGIN, EFFECT, Writer

_DAY = 86_400

_history = Writer(Path(os.environ["BOOKINGS"]))
_store = redis.Redis.from_url(os.environ["REDIS_URL"])
_mark = os.environ.get("MARK", "")


def book(ident: str, key: str, sequence: int) -> None:
    """Take 5 to 10 ms, then have an effect outside of all systems."""
    _history.note(BEGIN, ident, key, sequence)
    time.sleep(random.uniform(0.005, 0.010))
    _history.note(EFFECT, ident, key, sequence)


def book_once(ident: str, key: str, sequence: int) -> None:
    """Do it unless Redis says that it was done."""
    mark = f"done:{ident}"
    if _mark == "before":
        if not _store.set(mark, 1, nx=True, ex=_DAY):
            return
        book(ident, key, sequence)
    else:
        if _store.exists(mark):
            return
        book(ident, key, sequence)
        _store.set(mark, 1, ex=_DAY)
