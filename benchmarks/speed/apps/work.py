"""What every handler does, and the dedup that people write by hand. Set by the environment.

``SPEED_LOAD`` says what the work is, ``SPEED_COUNTS`` and ``SPEED_ARRIVALS`` where it is noted, and
``SPEED_MARK`` whether the handler asks Redis first.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from speed.load import COMPUTING, SLEEPING, Load
from speed.sharedmemory import Counts, Moments

SLEEP = 0.001
DAY = 86_400
_COMPUTE = 200e-6

WORK = Load.read(os.environ["SPEED_LOAD"]).work
MARK = bool(os.environ.get("SPEED_MARK"))

_counts = Counts(Path(os.environ["SPEED_COUNTS"])) if "SPEED_COUNTS" in os.environ else None
_arrivals = Moments(Path(os.environ["SPEED_ARRIVALS"])) if "SPEED_ARRIVALS" in os.environ else None

# Nobody else's memory holds what this imports.
if MARK:
    import redis

    _store = redis.Redis.from_url(os.environ["REDIS_URL"])


def note(number: int) -> None:
    """Say that the event came."""
    if _arrivals is not None:
        _arrivals.note(number, time.monotonic())
    if _counts is not None:
        _counts.count()


def work(number: int) -> None:
    """Do what a plain handler does."""
    if WORK == SLEEPING:
        time.sleep(SLEEP)
    elif WORK == COMPUTING:
        compute()
    note(number)


def work_once(ident: str, number: int) -> None:
    """Do it unless Redis says that it was done."""
    if not MARK or _store.set(f"done:{ident}", 1, nx=True, ex=DAY):
        work(number)


def compute() -> None:
    """Use the CPU for so long, by the thread's own clock: a busy machine takes longer."""
    end = time.thread_time() + _COMPUTE
    while time.thread_time() < end:
        pass
