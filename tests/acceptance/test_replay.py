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
from worker import App
from worker.archive.base import Archive
from worker.archive.entry import Entry
from worker.archive.journal import State
from worker.archive.open import open_archive
from worker.archive.selection import Selection
from worker.archive.tables import dump_table

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

    said = command.run()
    assert f"{everything} events sent" in said
    assert "remembers to have done it drops; --again does it once more" in said
    eventually(lambda: service.counter("duplicates") >= 2 * everything, "all of it comes")
    assert effects(service, COUNT) == effects(service, OBSERVE) == everything

    said = command.run("--again", "--handler", "count")
    assert f"{everything} events sent" in said
    assert "--again" not in said
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
    other = Command(service, url)
    never = other.run("--leases", "sqlite:///other.db", code=2)
    assert "steps never ran with the lease store sqlite:///other.db" in never
    assert "A new service begins with the past by --hold-live" in never
    for replay_id in ("abc-1", "abc-2", "abd", "ab"):
        command.run("--id", replay_id)
    assert "2 replays have an id that begins with 'abc': abc-1, abc-2" in command.run(
        "--resume", "abc", code=2
    )
    assert "the replay abd is done" in command.run("--resume", "abd", code=2)
    assert "the replay ab is done" in command.run("--resume", "ab", code=2)
    assert "the replay abc-2 is done already" in command.run("--pause", "abc-2", code=2)
    assert "the replay abc-1 is done already" in command.run("--cancel", "abc-1", code=2)
    assert "has run already" in command.run("--hold-live", code=2)
    assert "has run already" in command.run("--hold-live", "--dry-run", code=2)
    assert "gap" in command.run("--hold-live", "--until", "1h", code=2)
    assert "another memory" in command.run("--hold-live", "--again", code=2)
    assert "do not go together" in command.run("--list", "--pause", "x", code=2)
    for option in ("--dry-run", "--since=1d"):
        assert "do not go together" in command.run("--resume", "x", option, code=2)
    assert "--cancel and --dry-run" in command.run("--cancel", "x", "--dry-run", code=2)
    assert "no replay ''" in command.run("--resume", "", code=2)
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
    assert "which service? Say --to NAME, or --app" in told()
    assert service.drain() == 0
    assert "start it first" in told("--to", "steps")


def test_ctrl_c_pauses_it_and_json_tells_how_it_goes(
    serve: Serve, embedded: Place, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/archive.db"
    fill(url, 30)
    service = serve(embedded, "steps", archive_url=url)
    service.start_ready()
    command = Command(service, url)

    command.begin("--id", "one", "--rate", "5", "--json")
    command.wait_sent("one", 5)
    command.interrupt()
    assert command.ended() == 130
    assert "--resume one" in command.said
    assert command.replay("one").state is State.PAUSED

    told = command.run("--resume", "on", "--json").splitlines()
    lines = [json.loads(line) for line in told if line.startswith("{")]
    assert lines[-1] == {"replay": "one", "state": "done", "sent": 30}
    assert all(line["of"] == 30 and line["upto"] == 30 for line in lines[:-1])
    eventually(lambda: effects(service, COUNT) == 30, "all of it")
    assert service.ledger.disorder() == {}
    assert service.drain() == 0


def test_what_is_older_than_ids_are_remembered_is_told(
    serve: Serve, embedded: Place, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/archive.db"
    fill(url, 3)
    service = serve(embedded, "steps", archive_url=url)
    service.start_ready()
    command = Command(service, url)

    assert "older than ids are remembered (7 days)" in command.run("--dry-run")
    assert "older" not in command.run("--dry-run", "--again")
    assert "0 events would be sent" in command.run("--dry-run", "--since", "1h")
    assert service.drain() == 0


def test_events_whose_headers_fill_a_frame_are_replayed_as_all_others(
    serve: Serve, servers: Place, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/archive.db"
    fill(url, 3, headers=dump_table({"qw-key": "old", "big": "y" * 131_000}))
    service = serve(servers, "steps", archive_url=url)
    service.start_ready()

    Command(service, url).run("--again", "--handler", "count")

    eventually(lambda: effects(service, COUNT) == 3, "all are handled")
    assert effects(service, OBSERVE) == 0
    assert service.ledger.disorder() == {}
    assert service.dead_letters() == []
    assert service.drain() == 0


def test_a_hold_that_is_cancelled_lets_the_service_go_live(
    serve: Serve, embedded: Place, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/archive.db"
    fill(url, 30)
    service = serve(embedded, "steps", archive_url=url, lease_ttl=2)
    command, other = Command(service, url), Command(service, url)
    command.begin("--hold-live", "--id", "one", "--ahead", "10")
    eventually(lambda: "in which 10 messages wait" in command.said, "it waits for the service")
    app = App("publisher", broker=embedded.broker)
    live = Load(app).publish(steps(1, 5))
    app.close()

    assert "without the rest of the past" in other.run("--cancel", "one")
    assert command.ended() == 1
    service.start_ready()

    eventually(lambda: service.ledger.has(live, *STEPS), "what is live is handled")
    order = [entry.id for entry in service.ledger.entries("effect", COUNT)]
    assert order[:10] == [f"old-{n}" for n in range(10)]
    assert set(order[10:]) == live
    assert service.drain() == 0


def test_a_replay_that_holds_is_gone_on_with_and_cancelled_as_it_says(
    serve: Serve, embedded: Place, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/archive.db"
    fill(url, 30)
    service = serve(embedded, "steps", archive_url=url)
    command = Command(service, url)
    replay = f"qworker replay --app {service.app}"

    def told_without_app(*arguments: str) -> str:
        service.app, app = "", service.app
        try:
            return service.run("replay", *arguments).stderr
        finally:
            service.app = app

    command.begin("--hold-live", "--id", "one", "--ahead", "10")
    eventually(lambda: "in which 10 messages wait" in command.said, "it waits for the service")
    command.interrupt()
    assert command.ended() == 130
    assert f"go on with: {replay} --resume one" in command.said

    again = command.run("--hold-live", code=2)
    assert f"{replay} --resume one;" in again
    assert f"{replay} --cancel one)" in again
    for options in ((), ("--since", "1h"), ("--dry-run",)):
        assert "steps is held by the replay one" in command.run(*options, code=2)
    for option in ("--resume", "--cancel"):
        told = told_without_app(option, "one")
        assert "the replay one holds what is live" in told
        assert "say --app MODULE[:ATTRIBUTE] of steps" in told
    assert f"{replay} --resume one goes on" in command.run("--pause", "one")
    assert command.replay("one").state is State.PAUSED

    assert "one is cancelled" in command.run("--cancel", "one")


def test_one_that_holds_and_has_sent_all_says_that_the_service_is_to_be_started(
    serve: Serve, embedded: Place, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/archive.db"
    fill(url, 3)
    archive = archiving(serve, embedded, url)
    archive.start_ready("--shards", "2")
    service = serve(embedded, "steps", archive_url=url)
    command = Command(service, url)

    command.begin("--hold-live", "--id", "one")
    eventually(lambda: "start it now (in another terminal)" in command.said, "all is sent")
    command.interrupt()
    assert command.ended() == 130
    told = command.run("--resume", "one", code=2)
    assert "has sent all: steps goes over to what is live by itself" in told
    service.start_ready()
    eventually(lambda: effects(service, COUNT) == 3, "it begins with the past")
    assert service.drain() == archive.drain() == 0


def fill(url: str, number: int, headers: str = "{}") -> None:
    """Put some old events of one key into an archive."""
    store = open_archive(url)
    store.add(
        [
            Entry(
                id=f"old-{n}", name="test.step", key="old", time=n, headers=headers,
                properties="{}", body=json.dumps({"key": "old", "sequence": n}).encode(), at=n,
            )
            for n in range(number)
        ]
    )  # fmt: skip
    store.close()
