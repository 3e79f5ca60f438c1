"""With --single-active one process consumes the whole service, wherever it runs."""

from __future__ import annotations

from collections.abc import Callable
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


@pytest.fixture(params=["site", "file_site"], ids=["machines", "file"])
def place(request: pytest.FixtureRequest) -> Site:
    """Three machines with RabbitMQ and Redis; or three supervisors with one SQLite file."""
    chosen: Site = request.getfixturevalue(request.param)
    return chosen


@pytest.fixture
def three(place: Site) -> list[Supervisor]:
    """Three supervisors of one service, all of them started."""
    supervisors = [place.supervisor(name, **SETTINGS) for name in ("one", "two", "three")]
    for supervisor in supervisors:
        supervisor.start_ready(*OPTIONS)
    return supervisors


@pytest.fixture
def load(place: Site) -> SteadyLoad:
    return place.load(rate=60.0)


def active(place: Site, supervisors: list[Supervisor]) -> Supervisor:
    """Wait until one of these has everything, and return it."""

    def found() -> list[Supervisor]:
        names = list(place.owners().values())
        return [each for each in supervisors if names.count(each.name) == SHARDS]

    return until(found, PATIENCE, "one of them has everything")[0]


def check(place: Site, load: SteadyLoad, *supervisors: Supervisor, undisturbed: bool) -> None:
    """One process at a time, for all shards, did everything."""
    found = place.verdict(load, *supervisors, single_active=True)
    assert found.undisturbed if undisturbed else found.held, found.story


def test_the_next_one_goes_on_where_the_last_one_ends(
    place: Site, three: list[Supervisor], load: SteadyLoad, tell: Tell
) -> None:
    rest = list(three)
    with load.running():
        while len(rest) > 1:
            some_more(rest[0])
            leaver = active(place, rest)
            rest.remove(leaver)
            began = monotonic()
            assert leaver.drain() == 0
            active(place, rest)
            longest = max(place.gaps(began, monotonic()).values())
            tell(f"  --single-active: handed over after {longest:.2f} s")
            assert longest <= HAND_OVER
        some_more(rest[0])

    check(place, load, *rest, undisturbed=True)


def test_the_next_one_takes_over_when_the_last_one_is_killed(
    place: Site, three: list[Supervisor], load: SteadyLoad, tell: Tell
) -> None:
    rest = list(three)
    with load.running():
        while len(rest) > 1:
            some_more(rest[0])
            dead = active(place, rest)
            rest.remove(dead)
            began = monotonic()
            dead.kill(Part.GROUP)
            active(place, rest)
            longest = max(place.gaps(began, monotonic()).values())
            tell(f"  --single-active: taken over after {longest:.2f} s, with leases of {LEASE:g} s")
            assert longest <= LEASE + TAKE_OVER
        some_more(rest[0])

    check(place, load, *rest, undisturbed=False)


def test_who_slept_is_not_a_second_one_when_it_wakes(
    place: Site, three: list[Supervisor], load: SteadyLoad
) -> None:
    with load.running():
        sleeper = active(place, three)
        rest = [each for each in three if each is not sleeper]
        with sleeper.paused(Part.GROUP):
            sleep(1.5 * LEASE)
            active(place, rest)
        eventually(lambda: sleeper.events("ShardsLapsed"), "it notices")
        some_more(rest[0], 200)

    check(place, load, *three, undisturbed=False)


def test_several_that_start_at_once_agree(place: Site, load: SteadyLoad) -> None:
    supervisors = [place.supervisor(name, **SETTINGS) for name in ("one", "two", "three")]
    for supervisor in supervisors:
        supervisor.start(*OPTIONS)
    eventually(lambda: any(each.status().get("ready") for each in supervisors), "one is ready")
    with load.running():
        active(place, supervisors)
        some_more(supervisors[0], 200)

    check(place, load, *supervisors, undisturbed=True)
