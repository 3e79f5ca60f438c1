"""Supervisors that join and leave under load share the shards out, one owner each, all the time."""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import partial

import pytest

from acceptance.running import some_more
from machines.site import Site

SHARDS = 8
OPTIONS = ("--shards", str(SHARDS), "--processes", "2", "--concurrency", "8")

Tell = Callable[[str], None]


def test_supervisors_join_and_leave_one_by_one(site: Site, tell: Tell) -> None:
    one, two, three = map(site.supervisor, ("one", "two", "three"))
    load = site.load(seconds=0.01)
    quick = partial(site.hand_over, shards=SHARDS, handler=0.01, tell=tell)
    one.start_ready(*OPTIONS)

    with load.running():
        site.until_shared(SHARDS, one)

        with quick("a second supervisor joins"):
            two.start_ready(*OPTIONS)
            site.until_shared(SHARDS, one, two)

        with quick("a third supervisor joins"):
            three.start_ready(*OPTIONS)
            site.until_shared(SHARDS, one, two, three)

        with quick("one of three leaves"):
            assert two.drain() == 0
            site.until_shared(SHARDS, one, three)

        with quick("one of two leaves"):
            assert one.drain() == 0
            site.until_shared(SHARDS, three)

    site.judge(load, three, undisturbed=True)


@pytest.mark.long
def test_supervisors_join_and_leave_together(any_site: Site, tell: Tell) -> None:
    one, two, three = map(any_site.supervisor, ("one", "two", "three"))
    load = any_site.load(seconds=0.01)
    quick = partial(any_site.hand_over, shards=SHARDS, handler=0.01, tell=tell)
    one.start_ready(*OPTIONS)

    with load.running():
        any_site.until_shared(SHARDS, one)

        with quick("two join at once"):
            two.start(*OPTIONS)
            three.start(*OPTIONS)
            any_site.until_shared(SHARDS, one, two, three)

        with quick("two leave at once"):
            for leaver in (one, three):
                leaver.signal(signal.SIGTERM)
            assert one.exit_code() == three.exit_code() == 0
            any_site.until_shared(SHARDS, two)

    any_site.judge(load, two, undisturbed=True)


def test_a_handler_that_runs_is_waited_for(site: Site, tell: Tell) -> None:
    one, two = map(site.supervisor, ("one", "two"))
    load = site.load(keys=64, rate=32.0, seconds=1.0)
    quick = partial(site.hand_over, shards=SHARDS, handler=1.0, tell=tell)
    options = ("--shards", str(SHARDS), "--concurrency", "32")
    one.start_ready(*options)

    with load.running():
        site.until_shared(SHARDS, one)

        with quick("with handlers of 1 s, one joins"):
            two.start_ready(*options)
            site.until_shared(SHARDS, one, two)

        with quick("with handlers of 1 s, one leaves"):
            assert one.drain() == 0
            site.until_shared(SHARDS, two)

    site.judge(load, two, undisturbed=True)


def test_a_supervisor_more_than_there_are_shards_stands_by(site: Site) -> None:
    three = site.started("one", "two", "three", options=("--shards", "2"))
    load = site.load()

    with load.running():
        site.until_shared(2, *three)
        idle = {"one", "two", "three"} - set(site.owners().values())
        assert len(idle) == 1
        leaver = next(each for each in three if each.name not in idle)
        assert leaver.drain() == 0
        rest = [each for each in three if each is not leaver]
        site.until_shared(2, *rest)
        some_more(rest[0])

    site.judge(load, *rest, undisturbed=True)
