"""A new service begins with the past, while publishers publish and everybody is killed.

No gap, and no reordering where the past meets what is live: each key's effects are all of its
events, in the order of publishing.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from acceptance.conftest import Place, long_on
from acceptance.replays import Command, archive_url_of, archiving
from acceptance.running import STEPS, ForeignLoad, Load, Service, eventually, steps
from worker.archive.base import Archive
from worker.archive.open import open_archive
from worker.archive.selection import Selection

Serve = Callable[..., Service]
KEYS, EACH = 8, 250
SETTINGS = {"claim_ttl": 2, "lease_ttl": 3}


@pytest.fixture
def url(place: Place, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return archive_url_of(place, request, tmp_path)


def archived(url: str, number: int) -> bool:
    store: Archive = open_archive(url)
    _, upto = store.span(Selection())
    store.close()
    return upto >= number


def kill_one(service: Service) -> None:
    """Kill a process, and wait until another is in its place."""
    victim = service.processes()[0]
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: victim not in service.processes() and service.processes(), "replaced")


def check_order(service: Service, confirmed: set[str]) -> None:
    """All that was published took effect, and each key's first effects are in order."""
    ledger = service.ledger
    assert ledger.has(confirmed, *STEPS)
    assert ledger.disorder() == {}
    for sequence in ledger.sequences().values():
        assert sorted({*sequence}) == list(range(max(sequence) + 1)), "no gap"


@long_on("servers")
def test_the_past_comes_first_and_then_what_is_live_whoever_is_killed(
    serve: Serve, place: Place, url: str, load: Load
) -> None:
    archive = archiving(serve, place, url, **SETTINGS)
    archive.start_ready("--shards", "3", "--processes", "2")
    load.publish(steps(KEYS, EACH))
    eventually(partial(archived, url, KEYS * EACH), "the past is archived")
    service = serve(place, "steps", **SETTINGS)
    command = Command(service, url)
    again = ("--resume", "seam", "--shards", "4")

    with load.in_background(steps(KEYS, sys.maxsize - EACH, begin=EACH), batch=4, pause=0.02):
        command.begin("--hold-live", "--id", "seam", "--shards", "4", "--rate", "600")
        command.wait_sent("seam", 100)
        command.kill()
        service.start_ready("--shards", "4", "--processes", "2")
        command.begin(*again, "--rate", "600")
        command.wait_sent("seam", 700)
        kill_one(service)
        command.kill()
        kill_one(archive)
        command.begin(*again)
        eventually(lambda: not command.running, "it is through")
        assert "is live" in command.said, command.said
        assert command.ended() == 0
        kill_one(service)
    eventually(lambda: service.ledger.has(load.confirmed, *STEPS), "all that was published")

    check_order(service, load.confirmed)
    assert len(load.confirmed) > KEYS * EACH, "something was live"
    assert command.is_done("seam")
    assert service.dead_letters() == []
    assert service.drain() == archive.drain() == 0


@pytest.mark.long
def test_what_plain_clients_publish_goes_through_both_relay_queues(
    serve: Serve, servers: Place, postgres_url: str
) -> None:
    """They name no slot and no key: the archive is told where it is, the service's code knows."""
    place, url = servers, postgres_url
    archive = archiving(serve, place, url, key_from="body:key", **SETTINGS)
    archive.start_ready("--shards", "3", "--processes", "2")
    load = ForeignLoad(place.broker, keyed=False)
    load.publish(steps(KEYS, 50))
    eventually(partial(archived, url, KEYS * 50), "the past is archived")
    service = serve(place, "steps", **SETTINGS)
    command = Command(service, url)

    with load.in_background(steps(KEYS, sys.maxsize - 50, begin=50)):
        command.begin("--hold-live", "--id", "seam", "--shards", "4")
        command.wait_sent("seam", 100)
        command.kill()
        service.start_ready("--shards", "4", "--processes", "2")
        command.begin("--resume", "seam", "--shards", "4")
        eventually(lambda: not command.running, "it is through")
        assert "is live" in command.said, command.said
    eventually(lambda: service.ledger.has(load.confirmed, *STEPS), "all that was published")

    check_order(service, load.confirmed)
    assert service.dead_letters() == []
    assert service.drain() == archive.drain() == 0
