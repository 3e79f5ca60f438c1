"""The faults: a list out of a seed, the same for everyone, and how each is done."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from peers.site import Site
from peers.unit import Frozen, kill_process

#: Seconds from the end of one fault to the next.
_BETWEEN = (4.0, 8.0)
_FROZEN = 5.0
_REDIS_AWAY = 1.5
#: Seconds within which a process has run a handler, if it is to be chosen.
_BUSY = 3.0
#: Seconds to wait for such a process.
_PATIENCE = 30.0


@dataclass(frozen=True, slots=True)
class Fault:
    """One of them: ``wait`` seconds after the end of the one before."""

    kind: str
    wait: float
    #: Chooses the process: 0 to 1.
    pick: float


def kinds() -> list[str]:
    """Return the kinds of a round: each of them, and kills of the worker thrice."""
    return [*_DOING, *2 * ("a process killed", "the whole worker killed")]


def plan(seed: int, rounds: int, kinds: Sequence[str]) -> list[Fault]:
    """Return the faults: in each round all of these kinds, in another order."""
    chance = random.Random(seed)
    faults = []
    for _ in range(rounds):
        order = chance.sample(kinds, len(kinds))
        faults += [Fault(kind, chance.uniform(*_BETWEEN), chance.random()) for kind in order]
    return faults


class Done(NamedTuple):
    """A fault that was done, from when to when."""

    kind: str
    since: float
    until: float


def torment(site: Site, faults: Sequence[Fault], tell: Callable[[str], None]) -> list[Done]:
    """Do them all; return those that were done, which takes a process that runs handlers."""
    found = []
    for fault in faults:
        time.sleep(fault.wait)
        since = time.monotonic()
        done = _DOING[fault.kind](site, fault.pick)
        if done:
            found.append(Done(fault.kind, since, time.monotonic()))
        tell(f"{fault.kind}{'' if done else ': nobody ran handlers'}")
    return found


def _chosen(site: Site, pick: float) -> int | None:
    """Return a process that has run handlers lately."""
    deadline = time.monotonic() + _PATIENCE
    while not (busy := site.busy(_BUSY)):
        if time.monotonic() > deadline:
            return None
        time.sleep(0.1)
    return busy[int(pick * len(busy))]


def _kill_one(site: Site, pick: float) -> bool:
    pid = _chosen(site, pick)
    if pid is not None:
        kill_process(pid)
    return pid is not None


def _freeze_one(site: Site, pick: float) -> bool:
    pid = _chosen(site, pick)
    if pid is not None:
        with Frozen(pid):
            time.sleep(_FROZEN)
    return pid is not None


def _kill_all(site: Site, _pick: float) -> bool:
    site.unit.kill()
    return True


def _restart(site: Site, _pick: float) -> bool:
    site.unit.restart()
    return True


def _kill_rabbitmq(site: Site, _pick: float) -> bool:
    site.rabbitmq.kill()
    site.rabbitmq.start()
    return True


def _close_connections(site: Site, _pick: float) -> bool:
    site.rabbitmq.ctl("close_all_connections", "--global", "an operator closes them")
    return True


def _kill_redis(site: Site, _pick: float) -> bool:
    site.redis.kill()
    time.sleep(_REDIS_AWAY)
    site.redis.start()
    return True


_DOING: dict[str, Callable[[Any, float], bool]] = {
    "a process killed": _kill_one,
    "the whole worker killed": _kill_all,
    "SIGTERM and a new start": _restart,
    "a process stopped for 5 s": _freeze_one,
    "RabbitMQ killed": _kill_rabbitmq,
    "all connections closed": _close_connections,
    "Redis killed": _kill_redis,
}
