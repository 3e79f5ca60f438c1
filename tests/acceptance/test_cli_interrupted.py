"""Ctrl-C says in one line what a command leaves behind; reshard shows what goes on meanwhile."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from acceptance.commands import Shell
from waiting import until

_PATIENCE = 60.0
_APP = """\
import time
from pathlib import Path

from worker import App

app = App("bank")


@app.on("user.deposited")
def record(event: dict) -> None:
    Path("begun").touch()
    while not Path("go").exists():
        time.sleep(0.01)
"""


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """Beside a service that ran once."""
    with closing(Shell(tmp_path, {"QWORKER_APP": "handlers"})) as shell:
        shell.write("handlers.py", _APP)
        shell.run("start", "--burst")
        yield shell


def interrupted(process: subprocess.Popen[bytes], after: bytes) -> bytes:
    """Press Ctrl-C once the command has said this on standard error; return what it says then."""
    assert process.stderr is not None
    for line in process.stderr:
        if after in line:
            break
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=_PATIENCE)
    assert process.returncode == 130
    assert b"Traceback" not in rest
    return rest.strip()


def test_a_reshard_goes_on_and_can_be_looked_at(shell: Shell) -> None:
    watching = shell.start("reshard", "--to", "3")

    left = interrupted(watching, after=b"no supervisor of the service runs")

    assert left.startswith(b"qworker: interrupted: what was asked for goes on in the service;")
    assert b"the same command waits for it again" in left
    shown = shell.run("reshard")
    assert shown.out == "reshard from 1 to 3 shards: declares the new queues\n"
    assert "no supervisor of the service runs" in shown.err
    shell.start("start")
    assert shell.run("reshard", "--to", "3").out == "bank has 3 shards, generation 2\n"
    assert shell.run("reshard").out == "bank has 3 shards, generation 2\n", "nothing is under way"


def test_a_burst_goes_on_until_what_is_published_is_consumed(shell: Shell) -> None:
    shell.run("reshard", "--to", "3", "--no-wait")

    shell.run("start", "--burst")

    last = "reshard from 1 to 3 shards: consumes the new queues, and removes the old ones\n"
    assert shell.run("reshard").out in {last, "bank has 3 shards, generation 2\n"}


def test_to_look_at_a_change_of_a_service_that_never_ran_is_a_mistake(shell: Shell) -> None:
    assert "bank2 never ran" in shell.run("reshard", "--service", "bank2", code=2).err


def test_a_pause_stays_asked_for(shell: Shell) -> None:
    shell.start("start")
    shell.run("publish", "user.deposited", "a=b", "--key", "u1")
    until((shell.folder / "begun").exists, _PATIENCE, "the handler runs")
    pausing = shell.start("pause", "--handler", "record")
    assert pausing.stdout is not None
    assert b"is paused" in pausing.stdout.readline()

    pausing.send_signal(signal.SIGINT)
    _, err = pausing.communicate(timeout=_PATIENCE)

    assert pausing.returncode == 130
    said = b"qworker: interrupted: it stays asked for; the same command waits again"
    assert err.strip() == said
    assert shell.run("status", "--json").json["paused"]["handlers"] == ["record"]
    shell.write("go", "")
    shell.run("pause", "--handler", "record")


def test_an_event_whose_publishing_is_interrupted_can_be_published_again(shell: Shell) -> None:
    away = ("--broker", "amqp://127.0.0.1:1", "--connect-timeout", "60")

    left = interrupted(
        shell.start("publish", *away, "user.deposited", "user_id=u1", "--id", "d-1"),
        after=b"waiting for up to 60 s",
    )

    assert b"it may or may not be published; --id d-1 publishes it again" in left


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("reshard", "--to", "x"), "'x' is not a whole number from 1 to 1024"),
        (("reshard", "--to", "0"), "'0' is not a whole number from 1 to 1024"),
        (("pause", "--shard", "x"), "'x' is not a whole number from 0 on"),
        (("pause", "--timeout", "soon"), "'soon' is not a number of seconds, zero or more"),
        (("dlq", "list", "--limit", "-1"), "'-1' is not a whole number from 0 on"),
    ],
)
def test_what_is_no_number_is_told_in_words(
    tmp_path: Path, command: tuple[str, ...], said: str
) -> None:
    assert said in Shell(tmp_path).run(*command, "--app", "handlers", code=2).err
