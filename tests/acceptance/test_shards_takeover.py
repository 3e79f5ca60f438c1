"""What a supervisor had when it died, others have once its leases ran out, and not before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any

import pytest

from acceptance.running import some_more
from machines.site import Site
from machines.supervisor import Part, Supervisor

SHARDS = 8
OPTIONS = ("--shards", str(SHARDS), "--processes", "2", "--concurrency", "8")
#: Seconds beyond the end of a lease in which its shard is consumed again.
TAKE_OVER = 2.0
#: Seconds of a lease, where the default of ten is not what is measured.
SHORT = 3.0
QUICK: dict[str, Any] = {"lease_ttl": SHORT, "claim_ttl": SHORT}

Tell = Callable[[str], None]


def shards_of(site: Site, supervisor: Supervisor) -> list[int]:
    """Return the shards that a supervisor has."""
    return [shard for shard, name in site.owners().items() if name == supervisor.name]


def check_take_over(
    tell: Tell, what: str, gaps: Mapping[int, float], orphans: list[int], lease: float
) -> None:
    """The orphans went on after their leases' end, in time; the other shards all the while."""
    rest = [gap for shard, gap in gaps.items() if shard not in orphans]
    longest = max(gaps[shard] for shard in orphans)
    tell(f"  {what}: with leases of {lease:g} s, taken over after {longest:.2f} s at most")
    assert len(gaps) == SHARDS
    assert longest <= lease + TAKE_OVER, gaps
    assert max(rest, default=0.0) <= TAKE_OVER, gaps


@pytest.mark.long
@pytest.mark.parametrize("settings", [{}, QUICK], ids=["default", "short"])
def test_a_machine_that_dies(site: Site, tell: Tell, settings: dict[str, Any]) -> None:
    one, two, three = site.started("one", "two", "three", options=OPTIONS, **settings)
    load = site.load()

    with load.running():
        site.until_shared(SHARDS, one, two, three)
        some_more(one)
        orphans = shards_of(site, two)

        killed = monotonic()
        two.kill(Part.GROUP)
        site.until_shared(SHARDS, one, three)
        gaps = site.gaps(killed, monotonic())

    lease = settings.get("lease_ttl", 10.0)
    check_take_over(tell, "kill -9 of a whole supervisor", gaps, orphans, lease)
    site.judge(load, one, three)


def test_a_supervisor_that_dies_alone_leaves_processes_that_end_in_order(
    site: Site, tell: Tell
) -> None:
    one, two = site.started("one", "two", options=OPTIONS, **QUICK)
    load = site.load(seconds=0.1)

    with load.running():
        site.until_shared(SHARDS, one, two)
        orphans = shards_of(site, two)

        killed = monotonic()
        two.kill(Part.SUPERVISOR)
        site.until_shared(SHARDS, one)
        gaps = site.gaps(killed, monotonic())

    check_take_over(tell, "kill -9 of a supervisor alone", gaps, orphans, SHORT)
    site.judge(load, one, undisturbed=True)


def test_a_process_that_dies_alone_costs_no_lease(site: Site, tell: Tell) -> None:
    one, two = site.started("one", "two", options=OPTIONS, claim_ttl=SHORT)
    load = site.load()

    with load.running():
        site.until_shared(SHARDS, one, two)
        before = site.owners()

        killed = monotonic()
        two.kill(Part.CHILD)
        some_more(two, 1000)
        site.until_shared(SHARDS, one, two)
        gaps = site.gaps(killed, monotonic())

    longest = max(gaps.values())
    tell(f"  kill -9 of one process of a supervisor: a shard stood still for {longest:.2f} s")
    assert longest <= TAKE_OVER + 1.0, "the time that a process takes to start"
    assert site.owners() in ({}, before)
    site.judge(load, one, two)


@pytest.mark.long
def test_everybody_dies_and_somebody_comes_back(site: Site, tell: Tell) -> None:
    one, two = site.started("one", "two", options=OPTIONS, **QUICK)
    heir = site.supervisor("heir", **QUICK)
    load = site.load()

    with load.running():
        site.until_shared(SHARDS, one, two)
        killed = monotonic()
        for supervisor in (one, two):
            supervisor.kill(Part.GROUP)
        heir.start(*OPTIONS)
        site.until_shared(SHARDS, heir)
        gaps = site.gaps(killed, monotonic())

    # Leases that everybody left behind are free once somebody has watched them for their length.
    tell(f"  kill -9 of everybody: consumed again after {max(gaps.values()):.2f} s at most")
    assert max(gaps.values()) <= SHORT + TAKE_OVER + 1.0, gaps
    site.judge(load, heir)
