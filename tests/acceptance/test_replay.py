"""Archived events to a service that runs: what was not done, or all of it again; paused, killed."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from acceptance.conftest import Place, long_on
from acceptance.replays import Command, archive_url_of, archiving
from acceptance.running import STEPS, Load, Service, eventually, steps
from worker.archive.base import Archive
from worker.archive.open import open_archive
from worker.archive.selection import Selection

Serve = Callable[..., Service]
COUNT, OBSERVE = STEPS
KEYS, EACH = 6, 40


@pytest.fixture
def url(place: Place, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return archive_url_of(place, request, tmp_path)


@pytest.fixture
def service(serve: Serve, place: Place, url: str, load: Load) -> Service:
    """A service that has handled what is archived."""
    archive = archiving(serve, place, url)
    archive.start_ready("--shards", "2")
    service = serve(place, "steps", archive_url=url)
    service.start_ready("--shards", "3")
    load.publish(steps(KEYS, EACH))
    eventually(lambda: service.ledger.has(load.confirmed, *STEPS), "all is handled")
    eventually(partial(archived, url, KEYS * EACH), "all is archived")
    assert archive.drain() == 0
    return service


def archived(url: str, number: int) -> bool:
    store: Archive = open_archive(url)
    _, upto = store.span(Selection())
    store.close()
    return upto >= number


def effects(service: Service, handler: str) -> int:
    return len(service.ledger.entries("effect", handler))


@long_on("servers")
def test_what_was_done_is_done_again_only_where_that_is_asked_for(
    service: Service, url: str, load: Load
) -> None:
    everything = KEYS * EACH
    command = Command(service, url)

    assert f"{everything} events sent" in command.run()
    eventually(lambda: service.counter("duplicates") >= 2 * everything, "all of it comes")
    assert effects(service, COUNT) == effects(service, OBSERVE) == everything

    assert f"{everything} events sent" in command.run("--again", "--handler", "count")
    eventually(lambda: effects(service, COUNT) == 2 * everything, "one does it again")
    assert effects(service, OBSERVE) == everything

    told = command.run("--again", "--handler", "count", "--key", "key-1", "--id", "one")
    assert f"{EACH} events sent" in told
    eventually(lambda: effects(service, COUNT) == 2 * everything + EACH, "once more, of a key")
    for (handler, key), sequence in service.ledger.sequences().items():
        times = 1 if handler == OBSERVE else 2 + (key == "key-1")
        assert sequence == [*range(EACH)] * times
    assert service.dead_letters() == []
    assert service.drain() == 0


@long_on("embedded")
def test_a_replay_that_is_paused_or_killed_goes_on_and_does_nothing_twice(
    service: Service, url: str, load: Load
) -> None:
    everything = KEYS * EACH
    command, other = Command(service, url), Command(service, url)

    command.begin("--again", "--handler", "count", "--id", "slow", "--rate", "10")
    command.wait_sent("slow", 20)
    assert "is at the replay slow" in other.run("--resume", "slow", code=2)
    assert "is paused" in other.run("--pause", "slow")
    assert command.ended() == 1
    assert "is paused" in command.said
    sent = command.replay("slow").sent
    assert 0 < sent < everything

    command.begin("--resume", "slow", "--rate", "10")
    command.wait_sent("slow", sent + 20)
    command.kill()

    assert f"{everything} events sent" in command.run("--resume", "slow")

    eventually(lambda: effects(service, COUNT) == 2 * everything, "all of it, once")
    assert {*service.ledger.executions().values()} == {1, 2}
    for (handler, _), sequence in service.ledger.sequences().items():
        assert sequence == [*range(EACH)] * (1 if handler == OBSERVE else 2)
    (listed,) = json.loads(command.run("--list", "--json"))
    assert (listed["state"], listed["sent"]) == ("done", everything)
    assert "done" in command.run("--resume", "slow", code=2)
    assert service.drain() == 0


def test_mistakes_are_told_with_what_was_meant(
    serve: Serve, embedded: Place, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/archive.db"
    open_archive(url).close()
    service = serve(embedded, "steps", archive_url=url)
    service.start_ready()
    command = Command(service, url)

    assert "did you mean count?" in command.run("--handler", "cuont", code=2)
    assert "the app is steps" in command.run("--to", "stpes", code=2)
    assert "only test.step is observed" in command.run("--name", "user.*", code=2)
    assert "no replay 'x'" in command.run("--resume", "x", code=2)
    assert "has run already" in command.run("--hold-live", code=2)
    assert "gap" in command.run("--hold-live", "--until", "1h", code=2)
    assert "do not go together" in command.run("--list", "--pause", "x", code=2)
    assert "0 events would be sent" in command.run("--dry-run")
    assert service.drain() == 0


def test_a_service_is_known_by_its_name_while_it_runs(
    serve: Serve, embedded: Place, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/archive.db"
    open_archive(url).close()
    service = serve(embedded, "steps", archive_url=url)
    service.start_ready()

    def told(*arguments: str) -> str:
        service.app, app = "", service.app
        try:
            found = service.run("replay", "--dry-run", *arguments)
        finally:
            service.app = app
        return found.stdout + found.stderr

    eventually(lambda: "0 events" in told("--to", "steps"), "its members tell what it observes")
    assert "did you mean count?" in told("--to", "steps", "--handler", "cuont")
    assert "did you mean steps?" in told("--to", "step")
    assert service.drain() == 0
    assert "start it first" in told("--to", "steps")
