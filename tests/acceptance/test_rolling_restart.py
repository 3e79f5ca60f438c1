"""Restarts under load, in each of the ways that operators do them: nothing is run twice or lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import pytest

from acceptance.running import eventually, some_more
from machines.load import SteadyLoad
from machines.site import Site
from machines.supervisor import Supervisor

SHARDS = 8
OPTIONS = ("--shards", str(SHARDS), "--processes", "2", "--concurrency", "8")
#: Seconds that a handler takes.
HANDLER = 0.05

Tell = Callable[[str], None]
HandOver = Callable[[str], AbstractContextManager[None]]


@pytest.fixture
def load(site: Site) -> SteadyLoad:
    return site.load(seconds=HANDLER)


@pytest.fixture
def quick(site: Site, tell: Tell) -> HandOver:
    """Fails where a shard stands still in the block for longer than a hand-over may take."""
    return partial(site.hand_over, shards=SHARDS, handler=HANDLER, tell=tell)


def has_processes(supervisor: Supervisor, number: int) -> bool:
    return len(supervisor.processes()) == number


def replaced(supervisor: Supervisor, before: list[int]) -> bool:
    """Tell whether a supervisor is ready with processes that are all new."""
    now = supervisor.processes()
    is_ready = supervisor.status().get("ready") and supervisor.status()["state"] == "running"
    return bool(is_ready) and len(now) == len(before) and not {*now} & {*before}


def test_fresh_code_by_sighup(site: Site, load: SteadyLoad, quick: HandOver) -> None:
    one, two = site.started("one", "two", options=OPTIONS)

    with load.running():
        site.until_shared(SHARDS, one, two)
        owners = site.owners()
        with quick("SIGHUP"):
            for supervisor in (one, two):
                before = supervisor.processes()
                supervisor.signal(signal.SIGHUP)
                eventually(partial(replaced, supervisor, before), "its processes are new")
                some_more(supervisor)
            assert site.owners() == owners, "no lease changed hands"

    site.judge(load, one, two, undisturbed=True)


@pytest.mark.long
def test_both_get_fresh_code_at_once(site: Site, load: SteadyLoad, quick: HandOver) -> None:
    both = site.started("one", "two", options=OPTIONS)

    with load.running():
        site.until_shared(SHARDS, *both)
        before = {supervisor.name: supervisor.processes() for supervisor in both}
        with quick("SIGHUP everywhere at once"):
            for supervisor in both:
                supervisor.signal(signal.SIGHUP)
            for supervisor in both:
                eventually(partial(replaced, supervisor, before[supervisor.name]), "it is new")
            some_more(both[0])

    site.judge(load, *both, undisturbed=True)


def test_a_new_supervisor_before_the_old_one_goes(
    site: Site, load: SteadyLoad, quick: HandOver
) -> None:
    (current,) = site.started("number-0", options=OPTIONS)

    with load.running():
        site.until_shared(SHARDS, current)
        with quick("the new one starts before the old one ends"):
            for number in (1, 2, 3):
                (successor,) = site.started(f"number-{number}", options=OPTIONS)
                assert current.drain() == 0
                current = successor
            site.until_shared(SHARDS, current)

    site.judge(load, current, undisturbed=True)


@pytest.mark.long
def test_one_after_the_other_is_stopped_and_started(
    site: Site, load: SteadyLoad, quick: HandOver
) -> None:
    three = site.started("one", "two", "three", options=OPTIONS)

    with load.running():
        site.until_shared(SHARDS, *three)
        with quick("one after the other ends and starts"):
            for supervisor in three:
                assert supervisor.drain() == 0
                supervisor.start_ready(*OPTIONS)
            site.until_shared(SHARDS, *three)

    site.judge(load, *three, undisturbed=True)


@pytest.mark.long
def test_a_process_more_and_a_process_fewer(site: Site, load: SteadyLoad, quick: HandOver) -> None:
    one, two = site.started("one", "two", options=OPTIONS)

    with load.running():
        site.until_shared(SHARDS, one, two)
        owners = site.owners()
        with quick("processes more and fewer"):
            for number, processes in (
                (signal.SIGTTIN, 3),
                (signal.SIGTTOU, 2),
                (signal.SIGTTOU, 1),
            ):
                one.signal(number)
                eventually(partial(has_processes, one, processes), "so many processes consume")
                some_more(one)
            assert site.owners() == owners, "no lease changed hands"

    site.judge(load, one, two, undisturbed=True)


@pytest.mark.long
def test_the_orchestrator_stops_every_process_at_once(site: Site, load: SteadyLoad) -> None:
    """As systemd does by default, and `kill -- -GROUP`: SIGTERM for everybody."""
    one, two = site.started("one", "two", options=OPTIONS)

    with load.running():
        site.until_shared(SHARDS, one, two)
        os.killpg(one.pid, signal.SIGTERM)
        assert one.exit_code() == 0
        site.until_shared(SHARDS, two)

    site.judge(load, two, undisturbed=True)
