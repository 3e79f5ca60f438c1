"""With --single-active one process consumes the whole service, wherever it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic, sleep
from typing import Any

import pytest

from acceptance.running import PATIENCE, eventually, some_more
from machines.load import SteadyLoad
from machines.site import Site
from machines.supervisor import Part, Supervisor
from waiting import until

SHARDS = 4
OPTIONS = ("--single-active", "--shards", str(SHARDS), "--concurrency", "8")
LEASE = 3.0
SETTINGS: dict[str, Any] = {"lease_ttl": LEASE, "claim_ttl": LEASE, "heartbeat": 1}
HAND_OVER = TAKE_OVER = 2.0

Tell = Callable[[str], None]


@pytest.fixture
def three(any_site: Site) -> list[Supervisor]:
    """Three supervisors of one service, all of them started."""
    return any_site.started("one", "two", "three", options=OPTIONS, **SETTINGS)


@pytest.fixture
def load(any_site: Site) -> SteadyLoad:
    return any_site.load(rate=60.0)


def active(any_site: Site, supervisors: list[Supervisor]) -> Supervisor:
    """Wait until one of these has everything, and return it."""

    def found() -> list[Supervisor]:
        names = list(any_site.owners().values())
        return [each for each in supervisors if names.count(each.name) == SHARDS]

    return until(found, PATIENCE, "one of them has everything")[0]


def check(any_site: Site, load: SteadyLoad, *supervisors: Supervisor, undisturbed: bool) -> None:
    """One process at a time, for all shards, did everything."""
    any_site.judge(load, *supervisors, undisturbed=undisturbed, single_active=True)


def end_active(
    any_site: Site, supervisors: list[Supervisor], end: Callable[[Supervisor], None]
) -> float:
    """End the one that has everything, and take it from the list, once the next one has it.

    Return for how many seconds a shard stood still.
    """
    some_more(supervisors[0])
    leaver = active(any_site, supervisors)
    supervisors.remove(leaver)
    began = monotonic()
    end(leaver)
    active(any_site, supervisors)
    return max(any_site.gaps(began, monotonic()).values())


def test_the_next_one_goes_on_where_the_last_one_ends(
    any_site: Site, three: list[Supervisor], load: SteadyLoad, tell: Tell
) -> None:
    def drain(leaver: Supervisor) -> None:
        assert leaver.drain() == 0

    rest = list(three)
    with load.running():
        while len(rest) > 1:
            longest = end_active(any_site, rest, drain)
            tell(f"  --single-active: handed over after {longest:.2f} s")
            assert longest <= HAND_OVER
        some_more(rest[0])

    check(any_site, load, *rest, undisturbed=True)


def test_the_next_one_takes_over_when_the_last_one_is_killed(
    any_site: Site, three: list[Supervisor], load: SteadyLoad, tell: Tell
) -> None:
    rest = list(three)
    with load.running():
        while len(rest) > 1:
            longest = end_active(any_site, rest, Supervisor.kill)
            tell(f"  --single-active: taken over after {longest:.2f} s, with leases of {LEASE:g} s")
            assert longest <= LEASE + TAKE_OVER
        some_more(rest[0])

    check(any_site, load, *rest, undisturbed=False)


@contextmanager
def asleep(site: Site, supervisor: Supervisor) -> Iterator[None]:
    """Stop all of a supervisor while the block runs; not while it keeps the file of all locked."""
    while True:
        with supervisor.paused(Part.GROUP):
            if not site.is_locked():
                yield
                return


@pytest.mark.long
def test_who_slept_is_not_a_second_one_when_it_wakes(
    any_site: Site, three: list[Supervisor], load: SteadyLoad
) -> None:
    with load.running():
        sleeper = active(any_site, three)
        rest = [each for each in three if each is not sleeper]
        with asleep(any_site, sleeper):
            sleep(1.5 * LEASE)
            active(any_site, rest)
        # By its own clock, or because its supervisor was quicker to hear it from the store.
        eventually(
            lambda: sleeper.events("ShardsLapsed") or "the lease is another's" in sleeper.log,
            "it notices",
        )
        some_more(rest[0], 200)

    check(any_site, load, *three, undisturbed=False)


@pytest.mark.long
def test_several_that_start_at_once_agree(any_site: Site, load: SteadyLoad) -> None:
    supervisors = [any_site.supervisor(name, **SETTINGS) for name in ("one", "two", "three")]
    for supervisor in supervisors:
        supervisor.start(*OPTIONS)
    eventually(lambda: any(each.status().get("ready") for each in supervisors), "one is ready")
    with load.running():
        active(any_site, supervisors)
        some_more(supervisors[0], 200)

    check(any_site, load, *supervisors, undisturbed=True)
