"""The archive as a service: everything once and in order, through kills; and its commands."""

from __future__ import annotations

import gzip
import json
import os
import signal
import sqlite3
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from acceptance.commands import COMMAND, Shell
from acceptance.conftest import Place
from acceptance.running import Load, Service, eventually, forever, steps
from servers import PostgreSQL
from worker import App
from worker.archive.base import Archive
from worker.archive.entry import Entry
from worker.archive.open import open_archive
from worker.archive.selection import Selection
from worker.archive.walk import pages

APP = "worker.archive.service"
KEYS, KILLS = 12, 4
LINE = b'{"id": "id-%d", "name": "user.created", "key": "u1", "payload": {"n": %d}}\n'


@pytest.fixture
def archive_url(place: Place, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """PostgreSQL beside servers, SQLite beside SQLite."""
    if place.broker.startswith("sqlite:"):
        return f"sqlite:///{tmp_path}/archive.db"
    found: str = request.getfixturevalue("postgres_url")
    return found


@pytest.fixture
def archiving(serve: Callable[..., Service]) -> Callable[..., Service]:
    """Return a function that makes the archive's service at a place."""

    def make(place: Place, archive_url: str, **settings: object) -> Service:
        service = serve(place, "", folder="archive", archive_url=archive_url, **settings)
        service.app = APP
        return service

    return make


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path)
    yield shell
    shell.close()


def has(store: Archive, number: int) -> bool:
    return store.size().events >= number


def kept(store: Archive) -> list[dict[str, Any]]:
    """Return id and payload of everything, in order."""
    found = pages(store, Selection(), *store.span(Selection()))
    return [{"id": e.id, **json.loads(e.body)} for page in found for e in page.entries]


def test_every_event_is_kept_once_and_in_the_order_of_its_key_whoever_is_killed(
    archiving: Callable[..., Service], place: Place, archive_url: str, load: Load
) -> None:
    archive = archiving(place, archive_url, claim_ttl=1)
    archive.start_ready("--shards", "4", "--processes", "2")
    store = open_archive(archive_url)

    with load.in_background(forever(KEYS), batch=20, pause=0.01):
        for _ in range(KILLS):
            goal = store.size().events + 100
            eventually(partial(has, store, goal), "it goes on")
            os.kill(archive.processes()[0], signal.SIGKILL)
    eventually(partial(has, store, len(load.confirmed)), "all is kept")
    assert archive.drain() == 0

    found = kept(store)
    assert {each["id"] for each in found} >= load.confirmed, "none is missing"
    assert len({each["id"] for each in found}) == len(found), "none is there twice"
    sequences: dict[str, list[int]] = defaultdict(list)
    for each in found:
        sequences[each["key"]].append(each["sequence"])
    assert len(sequences) == KEYS
    for sequence in sequences.values():
        assert sequence == list(range(len(sequence)))
    store.close()


def test_while_its_database_is_away_nothing_is_lost_or_dead(
    archiving: Callable[..., Service], servers: Place, postgres: PostgreSQL, postgres_url: str
) -> None:
    archive = archiving(servers, postgres_url)
    archive.start_ready("--shards", "2")
    publisher = App("publisher", broker=servers.broker)
    load = Load(publisher)
    load.publish(steps(4, 10))
    store = open_archive(postgres_url)
    eventually(lambda: store.size().events == 40, "all is kept")
    store.close()

    postgres.kill()
    load.publish(steps(4, 10, begin=10))
    eventually(lambda: "nothing is archived until this is mended" in archive.log, "it says so")
    postgres.start()

    eventually(lambda: store.size().events == 80, "all is kept")
    assert archive.dead_letters() == []
    assert archive.drain() == 0
    store.close()
    publisher.close()


def test_what_is_too_old_is_removed_by_itself(
    archiving: Callable[..., Service], embedded: Place, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/archive.db"
    store = open_archive(url)
    store.add([Entry("id-1", "user.created", None, 0, "{}", "{}", b"{}", at=0)])
    service = archiving(embedded, url, archive_retention=3600)

    service.start_ready()

    eventually(lambda: store.size().events == 0, "it is removed")
    assert service.drain() == 0
    store.close()


def test_lines_go_out_and_in_again(shell: Shell) -> None:
    source = shell.folder / "lines.jsonl"
    source.write_bytes(b"".join(LINE % (n, n) for n in range(1200)))
    here, there = "sqlite:///here.db", "sqlite:///there.db"

    assert shell.run("archive", "import", "lines.jsonl", "--archive", here).out == (
        "1200 events imported, 0 were there already\n"
    )
    shell.run("archive", "export", "out.jsonl", "--archive", here)
    shell.run("archive", "import", "out.jsonl", "--archive", there)
    again = shell.run("archive", "import", "out.jsonl", "--archive", there, "--json").json

    assert again == {"imported": 0, "there_already": 1200}
    shell.run("archive", "export", "last.jsonl", "--archive", there)
    assert (shell.folder / "last.jsonl").read_bytes() == (shell.folder / "out.jsonl").read_bytes()
    listed = shell.run("archive", "list", "--archive", there, "--json", "--limit", "2").out
    assert [json.loads(line)["payload"] for line in listed.splitlines()] == [{"n": 0}, {"n": 1}]


def test_what_goes_out_packed_comes_in_again(shell: Shell) -> None:
    (shell.folder / "lines.jsonl").write_bytes(LINE % (1, 1) + LINE % (2, 2))
    here, there = "sqlite:///here.db", "sqlite:///there.db"
    shell.run("archive", "import", "lines.jsonl", "--archive", here)

    shell.run("archive", "export", "out.jsonl", "--archive", here)
    shell.run("archive", "export", "out.jsonl.gz", "--archive", here)

    packed = (shell.folder / "out.jsonl.gz").read_bytes()
    assert gzip.decompress(packed) == (shell.folder / "out.jsonl").read_bytes()
    assert "2 events imported" in (
        shell.run("archive", "import", "out.jsonl.gz", "--archive", there).out
    )


def test_a_file_that_is_there_is_written_over_only_with_force(shell: Shell) -> None:
    (shell.folder / "lines.jsonl").write_bytes(LINE % (1, 1))
    (shell.folder / "out.jsonl").write_text("of somebody else")
    shell.environ["QWORKER_ARCHIVE_URL"] = "sqlite:///a.db"
    shell.run("archive", "import", "lines.jsonl")

    told = shell.run("archive", "export", "out.jsonl", code=2).err
    assert "out.jsonl is there already: --force writes over it" in told
    assert (shell.folder / "out.jsonl").read_text() == "of somebody else"

    assert "1 event exported" in shell.run("archive", "export", "out.jsonl", "--force").err
    assert (shell.folder / "out.jsonl").read_bytes() == (
        shell.run("archive", "export", "-").out.encode()
    )
    assert "No such file" in shell.run("archive", "export", "none/out.jsonl", code=2).err


def test_a_line_that_is_no_event_is_told_and_what_is_before_it_stays(shell: Shell) -> None:
    (shell.folder / "lines.jsonl").write_bytes(LINE % (1, 1) + LINE % (2, 2) + b"{}\n")

    told = shell.run("archive", "import", "lines.jsonl", "--archive", "sqlite:///a.db", code=2).err

    assert "line 3" in told
    assert "All lines before it are imported" in told
    info = shell.run("archive", "info", "--archive", "sqlite:///a.db", "--names", "--json").json
    assert (info["events"], info["names"]) == (2, {"user.created": 2})


def test_what_no_reader_of_numbers_takes_is_shown_as_it_is(shell: Shell) -> None:
    number = b"9" * 5000
    payload = b'{"n": %s, "m": 1}' % number
    line = b'{"id": "id-1", "name": "user.created", "payload_text": %s}\n'
    text = json.dumps(payload.replace(b", ", b",\n").decode()).encode()
    (shell.folder / "lines.jsonl").write_bytes(line % text)
    shell.environ["QWORKER_ARCHIVE_URL"] = "sqlite:///a.db"
    shell.run("archive", "import", "lines.jsonl")

    for command in (("list", "--json"), ("show", "id-1", "--json")):
        told = shell.run("archive", *command).out
        assert payload.decode() in told
        assert told.count("\n") == 1
    assert number.decode() in shell.run("archive", "show", "id-1").out


def test_a_line_that_no_broker_would_take_is_told(shell: Shell) -> None:
    bad = b'{"id": "b", "name": "n", "payload": 1, "properties": {"priority": 300}}\n'
    (shell.folder / "lines.jsonl").write_bytes(LINE % (1, 1) + bad)

    told = shell.run("archive", "import", "lines.jsonl", "--archive", "sqlite:///a.db", code=2).err

    assert "line 2: it could never be sent: its property 'priority'" in told


def test_that_there_is_no_room_for_what_is_written_is_told(shell: Shell) -> None:
    (shell.folder / "lines.jsonl").write_bytes(LINE % (1, 1))
    shell.environ["QWORKER_ARCHIVE_URL"] = "sqlite:///a.db"
    shell.run("archive", "import", "lines.jsonl")

    told = shell.run("archive", "export", "/dev/full", code=1).err
    assert "what is written does not fit: No space left on device" in told
    assert "Traceback" not in told
    for words in (("list",), ("list", "--json"), ("info",), ("export", "-"), ("show", "id-1")):
        with Path("/dev/full").open("wb") as full:
            done = subprocess.run(
                [COMMAND, "archive", *words],
                cwd=shell.folder,
                env=shell.environ,
                stdout=full,
                stderr=subprocess.PIPE,
                timeout=60,
                check=False,
            )
        assert done.returncode == 1, words
        assert b"does not fit: No space left on device" in done.stderr, words
        assert b"Traceback" not in done.stderr, words


def test_what_is_not_utf8_is_called_so_by_files_alone(shell: Shell) -> None:
    (shell.folder / "lines.jsonl").write_bytes(LINE % (1, 1))
    shell.environ["QWORKER_ARCHIVE_URL"] = "sqlite:///a.db"
    shell.run("archive", "import", "lines.jsonl")
    odd = os.fsdecode(b"\xff")

    for words in (
        ("archive", "show", odd),
        ("archive", "list", "--key", f"a{odd}"),
        ("replay", "--resume", odd),
        ("replay", "--pause", odd),
    ):
        told = shell.run(*words, code=2).err
        assert "is not UTF-8: nothing is called so" in told, words
        assert "Traceback" not in told, words
    shell.run("archive", "export", f"{odd}.jsonl")
    shell.run("archive", "import", f"{odd}.jsonl")


def test_reading_makes_no_archive_where_there_is_none(shell: Shell) -> None:
    told = shell.run("archive", "list", "--archive", "sqlite:///a.db", code=2).err

    assert "no such file" in told
    assert not (shell.folder / "a.db").exists()


@pytest.mark.parametrize(
    "words",
    [("archive", "list"), ("archive", "info"), ("replay", "--to", "bank", "--dry-run")],
    ids=" ".join,
)
@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_nor_in_a_database_of_somebody_else(
    shell: Shell, words: tuple[str, ...], mode: str
) -> None:
    file = shell.folder / "shop.db"
    with closing(sqlite3.connect(file)) as db:
        db.execute(f"PRAGMA journal_mode = {mode}")
        db.execute("CREATE TABLE stock (sku TEXT)")
    before, around = file.read_bytes(), {*shell.folder.iterdir()}
    told = shell.run(*words, "--archive", "sqlite:///shop.db", code=2).err

    assert "there is no archive in this file" in told
    assert file.read_bytes() == before
    assert {*shell.folder.iterdir()} == around


def test_where_the_archive_is_has_to_be_said_where_the_broker_is_no_file(shell: Shell) -> None:
    told = shell.run("archive", "info", "--broker", "amqp://host", code=3).err

    assert "--archive" in told


def test_old_events_are_removed_on_demand(shell: Shell) -> None:
    (shell.folder / "lines.jsonl").write_bytes(LINE % (1, 1))
    shell.environ["QWORKER_ARCHIVE_URL"] = "sqlite:///a.db"
    shell.run("archive", "import", "lines.jsonl")

    assert "nobody is here to be asked: say --yes" in (
        shell.run("archive", "trim", "--older-than", "1h", code=2).err
    )
    assert "0 events" in shell.run("archive", "trim", "--older-than", "1h", "--yes").out
    assert shell.run("archive", "list", "--key", "x").err == "none of 1 event is meant\n"
    assert shell.run("archive", "trim", "--older-than", "0s", "--yes").out == "1 event removed\n"
    assert shell.run("archive", "list").err == "the archive is empty\n"
