"""Who stood still for longer than its leases does nothing with what it no longer has.

A supervisor that stands still renews nothing, so its processes have to stop by themselves. A
process that stands still keeps the shards as long as its supervisor renews their leases. Where both
stand still, nobody but the clock can tell them when they wake.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

from acceptance.running import eventually, some_more
from machines.site import Site
from machines.supervisor import Part, Supervisor

SHARDS = 4
OPTIONS = ("--shards", str(SHARDS), "--processes", "2", "--concurrency", "8")
LEASE = 3.0
#: RabbitMQ, too, has to notice that a consumer is silent before the next one gets anything.
SETTINGS: dict[str, Any] = {"lease_ttl": LEASE, "claim_ttl": LEASE, "heartbeat": 1}
#: Longer than a lease, and than its watchers need to see that.
LONG = 1.5 * LEASE

Tell = Callable[[str], None]


@contextmanager
def asleep(supervisor: Supervisor, part: Part, seconds: float = LONG) -> Iterator[None]:
    """Let it stand still for so long at least, and until the block is over."""
    with supervisor.paused(part):
        until = time.monotonic() + seconds
        yield
        time.sleep(max(0.0, until - time.monotonic()))


def fences_told(supervisor: Supervisor) -> list[tuple[str, int, int]]:
    """Return id, shard and fence of the handlers that the log says outlived their lease."""
    told = supervisor.events("LeaseOutlived")
    return [(event["message_id"], event["shard"], event["fence"]) for event in told]


@pytest.mark.long
@pytest.mark.parametrize("part", [Part.SUPERVISOR, Part.GROUP])
def test_others_take_over_while_it_sleeps_and_it_lets_go_as_it_wakes(
    site: Site, tell: Tell, part: Part
) -> None:
    sleeper, other = site.started("sleeper", "other", options=OPTIONS, **SETTINGS)
    load = site.load(seconds=0.3, rate=50.0)

    with load.running():
        site.until_shared(SHARDS, sleeper, other)
        fell_asleep = time.monotonic()
        with asleep(sleeper, part):
            site.until_shared(SHARDS, other)
        woke = time.monotonic()
        site.until_shared(SHARDS, sleeper, other)
        some_more(sleeper)

    assert site.begun_by(sleeper, fell_asleep + LEASE, woke) == [], "nothing by its processes"
    found = site.judge(load, sleeper, other)
    tell(f"  {part.value} slept: {len(found.stale)} handlers outlived their lease")
    assert sleeper.events("ShardsLapsed"), "it noticed"
    told = fences_told(sleeper)
    assert {(e.id, e.shard, e.fence) for e, _ in found.stale} <= set(told)
    if part is Part.GROUP:
        assert told, "some handlers were in the midst when it fell asleep"


@pytest.mark.long
def test_a_process_that_sleeps_keeps_its_shards_as_long_as_its_supervisor_renews(
    site: Site,
) -> None:
    sleeper, other = site.started("sleeper", "other", options=OPTIONS, **SETTINGS)
    load = site.load(seconds=0.1, rate=50.0)

    with load.running():
        site.until_shared(SHARDS, sleeper, other)
        before = site.owners()
        with asleep(sleeper, Part.CHILD):
            pass
        site.until_shared(SHARDS, sleeper, other)
        assert site.owners() == before
        some_more(sleeper)

    assert site.judge(load, sleeper, other).stale == []


@pytest.mark.long
def test_a_process_that_sleeps_for_too_long_is_replaced_in_its_place(site: Site) -> None:
    impatient = {**SETTINGS, "watchdog": LEASE / 2}
    sleeper, other = site.started("sleeper", "other", options=OPTIONS, **impatient)
    load = site.load(seconds=0.1, rate=50.0)

    with load.running():
        site.until_shared(SHARDS, sleeper, other)
        with sleeper.paused(Part.CHILD) as (pid,):
            eventually(lambda: pid not in sleeper.children(), "the supervisor kills it")
            site.until_shared(SHARDS, sleeper, other)
        some_more(sleeper)

    site.judge(load, sleeper, other)


def test_a_handler_that_sleeps_through_everything_finishes_with_a_stale_fence(site: Site) -> None:
    sleeper, other = (site.supervisor(name, **SETTINGS) for name in ("sleeper", "other"))
    load = site.load(keys=16, rate=8.0, seconds=1.0)
    sleeper.start_ready(*OPTIONS)

    with load.running():
        site.until_shared(SHARDS, sleeper)
        other.start_ready(*OPTIONS)
        site.until_shared(SHARDS, sleeper, other)
        with asleep(sleeper, Part.GROUP):
            site.until_shared(SHARDS, other)
        eventually(partial(fences_told, sleeper), "it tells of the handlers that woke")

    found = site.judge(load, sleeper, other)
    assert found.stale, "handlers of the sleeper ended after their shard had another owner"
    assert all(old.fence < new.fence for old, new in found.stale)
    assert {(e.id, e.shard, e.fence) for e, _ in found.stale} <= set(fences_told(sleeper))
