"""Supervisors that join and leave under load share the shards out, one owner each, all the time."""

from __future__ import annotations

import signal
from collections.abc import Callable
from time import monotonic

import pytest

from acceptance.running import some_more
from machines.checker import Findings
from machines.site import Site

SHARDS = 8
OPTIONS = ("--shards", str(SHARDS), "--processes", "2", "--concurrency", "8")
#: Seconds that a shard may stand still while it changes hands, beside the handler that runs.
HAND_OVER = 2.0

Tell = Callable[[str], None]


def check_nobody_noticed(found: Findings) -> None:
    """Everything ran once, in order, in one place at a time."""
    assert found.undisturbed, found.story


def check_hand_over(site: Site, tell: Tell, what: str, since: float, handler: float) -> None:
    """No shard stood still for longer than a hand-over may take."""
    gaps = site.gaps(since, monotonic())
    tell(f"  {what}: a shard stood still for {max(gaps.values()):.2f} s at most")
    assert len(gaps) == SHARDS
    assert max(gaps.values()) <= HAND_OVER + handler, gaps


def test_supervisors_join_and_leave_one_by_one(site: Site, tell: Tell) -> None:
    one, two, three = map(site.supervisor, ("one", "two", "three"))
    load = site.load(seconds=0.01)
    one.start_ready(*OPTIONS)

    with load.running():
        site.until_shared(SHARDS, one)

        began = monotonic()
        two.start_ready(*OPTIONS)
        site.until_shared(SHARDS, one, two)
        check_hand_over(site, tell, "a second supervisor joins", began, 0.01)

        began = monotonic()
        three.start_ready(*OPTIONS)
        site.until_shared(SHARDS, one, two, three)
        check_hand_over(site, tell, "a third supervisor joins", began, 0.01)

        began = monotonic()
        assert two.drain() == 0
        site.until_shared(SHARDS, one, three)
        check_hand_over(site, tell, "one of three leaves", began, 0.01)

        began = monotonic()
        assert one.drain() == 0
        site.until_shared(SHARDS, three)
        check_hand_over(site, tell, "one of two leaves", began, 0.01)

    check_nobody_noticed(site.verdict(load, three))


@pytest.mark.long
def test_supervisors_join_and_leave_together(any_site: Site, tell: Tell) -> None:
    one, two, three = map(any_site.supervisor, ("one", "two", "three"))
    load = any_site.load(seconds=0.01)
    one.start_ready(*OPTIONS)

    with load.running():
        any_site.until_shared(SHARDS, one)

        began = monotonic()
        two.start(*OPTIONS)
        three.start(*OPTIONS)
        any_site.until_shared(SHARDS, one, two, three)
        check_hand_over(any_site, tell, "two join at once", began, 0.01)

        began = monotonic()
        for leaver in (one, three):
            leaver.signal(signal.SIGTERM)
        assert one.exit_code() == three.exit_code() == 0
        any_site.until_shared(SHARDS, two)
        check_hand_over(any_site, tell, "two leave at once", began, 0.01)

    check_nobody_noticed(any_site.verdict(load, two))


def test_a_handler_that_runs_is_waited_for(site: Site, tell: Tell) -> None:
    one, two = map(site.supervisor, ("one", "two"))
    load = site.load(keys=64, rate=32.0, seconds=1.0)
    options = ("--shards", str(SHARDS), "--concurrency", "32")
    one.start_ready(*options)

    with load.running():
        site.until_shared(SHARDS, one)

        began = monotonic()
        two.start_ready(*options)
        site.until_shared(SHARDS, one, two)
        check_hand_over(site, tell, "with handlers of 1 s, one joins", began, 1.0)

        began = monotonic()
        assert one.drain() == 0
        site.until_shared(SHARDS, two)
        check_hand_over(site, tell, "with handlers of 1 s, one leaves", began, 1.0)

    check_nobody_noticed(site.verdict(load, two))


def test_a_supervisor_more_than_there_are_shards_stands_by(site: Site) -> None:
    one, two, three = map(site.supervisor, ("one", "two", "three"))
    load = site.load()
    for supervisor in (one, two, three):
        supervisor.start_ready("--shards", "2")

    with load.running():
        site.until_shared(2, one, two, three)
        idle = {"one", "two", "three"} - set(site.owners().values())
        assert len(idle) == 1
        busy = [each for each in (one, two, three) if each.name not in idle]
        assert busy[0].drain() == 0
        site.until_shared(2, *(each for each in (one, two, three) if each is not busy[0]))
        some_more(three)

    rest = [each for each in (one, two, three) if each.running]
    check_nobody_noticed(site.verdict(load, *rest))
