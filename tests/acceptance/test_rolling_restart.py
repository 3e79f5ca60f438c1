"""Restarts under load, in each of the ways that operators do them: nothing is run twice or lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from time import monotonic

import pytest

from acceptance.running import eventually, some_more
from machines.checker import Findings
from machines.load import SteadyLoad
from machines.site import Site
from machines.supervisor import Supervisor

SHARDS = 8
OPTIONS = ("--shards", str(SHARDS), "--processes", "2", "--concurrency", "8")
#: Seconds that a shard may stand still while it changes hands, beside the handler that runs.
HAND_OVER = 2.0
HANDLER = 0.05

Tell = Callable[[str], None]


def check(found: Findings) -> None:
    """Every execution had its effect, and was the only one of its id."""
    assert found.undisturbed, found.story


def steady(site: Site) -> SteadyLoad:
    return site.load(seconds=HANDLER)


def check_gaps(site: Site, tell: Tell, what: str, since: float) -> None:
    """No shard stood still for longer than a hand-over may take."""
    gaps = site.gaps(since, monotonic())
    tell(f"  {what}: a shard stood still for {max(gaps.values()):.2f} s at most")
    assert len(gaps) == SHARDS
    assert max(gaps.values()) <= HAND_OVER + HANDLER, gaps


def replaced(supervisor: Supervisor, before: list[int]) -> bool:
    """Tell whether a supervisor is ready with processes that are all new."""
    now = supervisor.processes()
    is_ready = supervisor.status().get("ready") and supervisor.status()["state"] == "running"
    return bool(is_ready) and len(now) == len(before) and not {*now} & {*before}


def test_fresh_code_by_sighup(site: Site, tell: Tell) -> None:
    one, two = map(site.supervisor, ("one", "two"))
    load = steady(site)
    for supervisor in (one, two):
        supervisor.start_ready(*OPTIONS)

    with load.running():
        site.until_shared(SHARDS, one, two)
        began, owners = monotonic(), site.owners()
        for supervisor in (one, two):
            before = supervisor.processes()
            supervisor.signal(signal.SIGHUP)
            eventually(lambda: replaced(supervisor, before), "its processes are new")  # noqa: B023 - called before the loop goes on
            some_more(supervisor)
        assert site.owners() == owners, "no lease changed hands"
        check_gaps(site, tell, "SIGHUP", began)

    check(site.verdict(load, one, two))


@pytest.mark.long
def test_both_get_fresh_code_at_once(site: Site, tell: Tell) -> None:
    one, two = map(site.supervisor, ("one", "two"))
    load = steady(site)
    for supervisor in (one, two):
        supervisor.start_ready(*OPTIONS)

    with load.running():
        site.until_shared(SHARDS, one, two)
        began = monotonic()
        before = {supervisor.name: supervisor.processes() for supervisor in (one, two)}
        for supervisor in (one, two):
            supervisor.signal(signal.SIGHUP)
        for supervisor in (one, two):
            eventually(lambda: replaced(supervisor, before[supervisor.name]), "it is ready anew")  # noqa: B023 - called before the loop goes on
        some_more(one)
        check_gaps(site, tell, "SIGHUP everywhere at once", began)

    check(site.verdict(load, one, two))


def test_a_new_supervisor_before_the_old_one_goes(site: Site, tell: Tell) -> None:
    load = steady(site)
    current = site.supervisor("number-0")
    current.start_ready(*OPTIONS)

    with load.running():
        site.until_shared(SHARDS, current)
        began = monotonic()
        for number in (1, 2, 3):
            successor = site.supervisor(f"number-{number}")
            successor.start_ready(*OPTIONS)
            assert current.drain() == 0
            current = successor
        site.until_shared(SHARDS, current)
        check_gaps(site, tell, "the new one starts before the old one ends", began)

    check(site.verdict(load, current))


@pytest.mark.long
def test_one_after_the_other_is_stopped_and_started(site: Site, tell: Tell) -> None:
    three = [site.supervisor(name) for name in ("one", "two", "three")]
    load = steady(site)
    for supervisor in three:
        supervisor.start_ready(*OPTIONS)

    with load.running():
        site.until_shared(SHARDS, *three)
        began = monotonic()
        for supervisor in three:
            assert supervisor.drain() == 0
            supervisor.start_ready(*OPTIONS)
        site.until_shared(SHARDS, *three)
        check_gaps(site, tell, "one after the other ends and starts", began)

    check(site.verdict(load, *three))


def test_a_process_more_and_a_process_fewer(site: Site, tell: Tell) -> None:
    one, two = map(site.supervisor, ("one", "two"))
    load = steady(site)
    for supervisor in (one, two):
        supervisor.start_ready(*OPTIONS)

    with load.running():
        site.until_shared(SHARDS, one, two)
        began, owners = monotonic(), site.owners()
        for number, processes in ((signal.SIGTTIN, 3), (signal.SIGTTOU, 2), (signal.SIGTTOU, 1)):
            one.signal(number)
            eventually(lambda: len(one.processes()) == processes, "so many processes consume")  # noqa: B023 - called before the loop goes on
            some_more(one)
        assert site.owners() == owners, "no lease changed hands"
        check_gaps(site, tell, "processes more and fewer", began)

    check(site.verdict(load, one, two))


@pytest.mark.long
def test_the_orchestrator_stops_every_process_at_once(site: Site) -> None:
    """As systemd does by default, and `kill -- -GROUP`: SIGTERM for everybody."""
    one, two = map(site.supervisor, ("one", "two"))
    load = steady(site)
    for supervisor in (one, two):
        supervisor.start_ready(*OPTIONS)

    with load.running():
        site.until_shared(SHARDS, one, two)
        os.killpg(one.pid, signal.SIGTERM)
        assert one.exit_code() == 0
        site.until_shared(SHARDS, two)

    check(site.verdict(load, two))
