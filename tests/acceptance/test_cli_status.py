"""``qworker status``: a running service on every kind of store, and what is known without one."""

from __future__ import annotations

import json
import os
import pty
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from acceptance.commands import COMMAND, Shell
from acceptance.conftest import Place
from acceptance.desk import PATIENCE, Desk, step
from acceptance.running import Load, Service, eventually, held
from waiting import until

Serve = Callable[..., Service]


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    with closing(Shell(tmp_path)) as shell:
        shell.write("handlers.py", 'from worker import App\n\napp = App("bank")\n')
        yield shell


def status(service: Service, *arguments: str) -> dict[str, Any]:
    done = service.run("status", "--json", *arguments)
    assert done.returncode == 0, done
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def test_a_service_that_never_ran_is_told_of_and_nothing_is_made(shell: Shell) -> None:
    shown = shell.run("status", "--app", "handlers").out

    assert shown.startswith(
        "bank never ran with the lease store sqlite:///qworker.db\nnobody runs it now\n"
    )
    assert shell.run("status", "--app", "handlers", "--json").json["members"] == []
    assert not (shell.folder / "qworker.db").exists()


def test_also_where_the_store_is_a_server(shell: Shell, servers: Place) -> None:
    shell.environ |= {"QWORKER_BROKER_URL": servers.broker, "QWORKER_DEDUP_URL": servers.dedup}

    told = shell.run("status", "--app", "handlers", "--json").json
    assert told["generation"] is None
    assert (told["members"], told["shards"]) == ([], [])
    assert told["parked"] == {"keys": 0, "first": []}


def test_it_shows_owners_backlog_and_what_runs(place: Place, serve: Serve, load: Load) -> None:
    service = serve(place, "steps")
    service.start_ready("--shards", "2", "--processes", "1", "--prefetch", "2")
    load.publish(held("key-0", n) for n in range(10))

    def shows() -> dict[str, Any] | None:
        told = status(service)
        busy = [s for s in told["shards"] if s["backlog"] == 10]
        return told if busy and busy[0]["oldest"] else None

    told = until(shows, PATIENCE, "the backlog is seen")
    assert told is not None
    (member,) = told["members"]
    assert member["state"] == "running"
    assert (member["pid"], member["processes"], member["shards"]) == (service.pid, 1, 2)
    (busy,) = (s for s in told["shards"] if s["backlog"])
    (quiet,) = (s for s in told["shards"] if s is not busy)
    assert busy["owner"] == quiet["owner"] == f"{member['host']}:{service.pid}"
    assert busy["process"] in service.processes()
    assert (busy["depth"], busy["unsettled"]) == (8, 2)
    assert 1 <= busy["in_flight"] <= 4
    assert busy["epoch"] > 0
    assert 0 < busy["lease_left"] <= 10
    assert (quiet["depth"], quiet["unsettled"], quiet["oldest"]) == (0, 0, 0.0)
    shown = service.run("status").stdout.splitlines()
    assert shown[0] == "steps: 2 shards, generation 1"
    assert any(line.split()[:1] == ["SHARD"] for line in shown)
    assert shown[-1] == "parked keys: 0"

    service.release()
    assert service.drain() == 0
    told = status(service)
    assert told["members"] == []
    assert [s["owner"] for s in told["shards"]] == [None, None]


def test_it_shows_the_keys_that_are_held_and_those_that_are_parked(
    tmp_path: Path, place: Place
) -> None:
    with closing(Desk(tmp_path, place, "patient")) as desk:
        desk.serve()
        desk.publish(*(step(f"k{n}", n, "declined") for n in range(7)))
        until(lambda: desk.parked() == 7, PATIENCE, "they are parked")

        told = desk.run("status", "--json").json
        assert told["parked"]["keys"] == 7
        assert len(told["parked"]["first"]) == 5
        assert desk.run("status").out.splitlines()[-1].startswith("parked keys: 7: k")


def test_a_dedup_store_that_is_away_hides_nothing_else(embedded: Place, serve: Serve) -> None:
    service = serve(embedded, "steps")
    service.start_ready()
    away = ("--dedup", "redis://127.0.0.1:1/0", "--leases", embedded.broker)

    done = service.run("status", *away)
    assert done.returncode == 0, done
    assert "steps: 1 shard, generation 1" in done.stdout
    assert "the parked keys are not known" in done.stderr
    assert status(service, *away)["parked"] is None
    elsewhere = ("--dedup", "not.here:Store", "--leases", embedded.broker)
    assert status(service, *elsewhere)["parked"] is None


def test_watched_as_json_it_is_a_line_a_second_until_ctrl_c(shell: Shell) -> None:
    watching = shell.start("status", "--app", "handlers", "--watch", "--json")
    assert watching.stdout is not None
    lines = [json.loads(watching.stdout.readline()) for _ in range(2)]

    os.killpg(watching.pid, signal.SIGINT)
    _, err = watching.communicate(timeout=PATIENCE)
    assert [line["service"] for line in lines] == ["bank", "bank"]
    assert watching.returncode == 0
    assert err == b""


def test_watched_on_a_terminal_it_is_drawn_anew_until_ctrl_c(embedded: Place, serve: Serve) -> None:
    service = serve(embedded, "steps")
    service.start_ready("--shards", "300", "--processes", "1")
    pid, master = pty.fork()
    if pid == 0:  # the child: becomes the command
        os.chdir(service.folder)
        arguments = [COMMAND, "status", "--app", service.app, "--watch"]
        os.execve(COMMAND, arguments, {**service.environ, "TERM": "xterm"})  # noqa: S606 - our own program
    shown = bytearray()

    def read() -> None:
        with suppress(OSError):  # how Linux says that the other side of a terminal is closed
            while chunk := os.read(master, 65536):
                shown.extend(chunk)

    reader = threading.Thread(target=read)
    reader.start()
    eventually(lambda: shown.count(b"300 shards, generation 1") >= 2, "it is drawn twice")
    os.write(master, b"\x03")
    _, ended = os.waitpid(pid, 0)
    reader.join(PATIENCE)
    os.close(master)

    assert os.waitstatus_to_exitcode(ended) == 0
    assert b"more shards, with less to look at" in shown
    assert b"Traceback" not in shown


def test_a_supervisor_that_was_killed_is_silent_and_a_pause_does_not_wait_for_ever(
    embedded: Place, serve: Serve
) -> None:
    service = serve(embedded, "steps", lease_ttl=2)
    service.start_ready()
    os.kill(service.pid, signal.SIGKILL)
    service.exit_code()

    done = service.run("pause")
    assert done.returncode == 0, done
    assert "has given no sign of life for 2 s" in done.stderr
    assert "nobody runs this service now" in done.stdout
