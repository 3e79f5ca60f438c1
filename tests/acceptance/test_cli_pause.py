"""``qworker pause`` and ``qworker resume``, where nobody runs: what they note, mistakes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from acceptance.commands import Shell
from acceptance.conftest import Place

_APP = """\
from worker import App

app = App("bank", settings={"shards": 4})


@app.on("user.deposited")
def record(event: dict) -> None:
    pass


@app.on("user.*")
def audit(event: dict) -> None:
    pass
"""


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    with closing(Shell(tmp_path, {"QWORKER_APP": "handlers"})) as shell:
        shell.write("handlers.py", _APP)
        yield shell


@pytest.fixture
def beside(shell: Shell) -> Shell:
    """Where there is a broker's file; no service ever ran there."""
    shell.run("topology", "--declare")
    return shell


def paused(shell: Shell) -> dict[str, Any]:
    found: dict[str, Any] = shell.run("status", "--json").json["paused"]
    return found


def test_what_is_paused_is_noted_and_told(beside: Shell) -> None:
    said = beside.run("pause", "--handler", "audit", "--shard", "3", "--shard", "1").out

    assert said.splitlines() == [
        "bank: shards 1, 3 and handler audit are paused",
        "nobody runs this service now; it holds for whoever starts",
    ]
    assert paused(beside) == {"service": False, "shards": [1, 3], "handlers": ["audit"]}
    assert beside.run("pause").out.startswith("bank: the whole service and shards 1, 3 and handler")


def test_both_can_be_said_twice(beside: Shell) -> None:
    for _ in range(2):
        told = beside.run("pause", "--handler", "audit", "--json").json
        assert told == {
            "service": "bank",
            "paused": {"service": False, "shards": [], "handlers": ["audit"]},
            "members": 0,
            "waits_for": [],
        }
    for began in ("bank: resumed handler audit; ", "bank: "):
        said = beside.run("resume", "--handler", "audit", "--no-wait").out
        assert said == f"{began}nothing is paused\n"


def test_resume_takes_off_what_is_named_or_everything(beside: Shell) -> None:
    beside.run("pause", "--handler", "audit", "--handler", "record", "--shard", "0")
    beside.run("pause")

    some = beside.run("resume", "--handler", "record", "--no-wait").out
    assert some == (
        "bank: resumed handler record; the whole service and shard 0 and handler audit are paused\n"
    )
    assert paused(beside) == {"service": True, "shards": [0], "handlers": ["audit"]}
    rest = beside.run("resume", "--no-wait").out
    assert rest == (
        "bank: resumed the whole service and shard 0 and handler audit; nothing is paused\n"
    )
    assert paused(beside) == {"service": False, "shards": [], "handlers": []}


@pytest.mark.parametrize("command", ["pause", "resume"])
def test_a_handler_or_shard_that_is_not_there_is_a_mistake(beside: Shell, command: str) -> None:
    near = beside.run(command, "--handler", "recrod", code=2)
    assert near.err == "qworker: App('bank') has no handler 'recrod'; did you mean record?\n"
    far = beside.run(command, "--handler", "xyz", code=2)
    assert "it has audit, record" in far.err
    shard = beside.run(command, "--shard", "4", code=2)
    assert shard.err == "qworker: bank has no shard 4: its 4 shards are counted from 0\n"
    beside.run(command, "--shard", "-1", code=2)
    assert paused(beside) == {"service": False, "shards": [], "handlers": []}


def test_what_the_code_no_longer_has_can_be_resumed(beside: Shell) -> None:
    beside.run("pause", "--handler", "audit")
    beside.write("handlers.py", _APP.replace("def audit", "def other"))

    beside.run("resume", "--handler", "audit")
    assert paused(beside)["handlers"] == []


@pytest.mark.parametrize(
    "command", [("pause",), ("resume",), ("reshard", "--to", "2"), ("pause", "--shard", "0")]
)
def test_a_service_that_nobody_knows_is_a_mistake_and_nothing_is_made(
    shell: Shell, command: tuple[str, ...]
) -> None:
    del shell.environ["QWORKER_APP"]
    never = shell.run(*command, "--service", "bnak", "--leases", "sqlite:///l.db", code=2)

    assert "bnak never ran with the lease store sqlite:///l.db" in never.err
    shell.run(*command, "--service", "bnak", code=2)
    assert not [*shell.folder.glob("*.db*")]


def test_a_store_that_is_not_there_is_a_mistake_and_is_not_made(shell: Shell) -> None:
    """A typo, or another folder: the service runs on elsewhere."""
    for option in ("--broker", "--leases"):
        refused = shell.run("pause", option, "sqlite:///typo.db", code=2)

        assert "bank never ran with the lease store sqlite:///typo.db" in refused.err
        assert refused.out == ""
    assert not [*shell.folder.glob("*.db*")]


def test_nothing_is_resumed_and_nothing_made_where_nothing_was_paused(shell: Shell) -> None:
    resumed = shell.run("resume")
    assert resumed.out.startswith("bank: nothing is paused\n")
    assert "bank never ran with the lease store sqlite:///qworker.db" in resumed.err
    assert not [*shell.folder.glob("*.db*")]


def test_by_the_name_of_a_service_its_code_need_not_be_here(beside: Shell) -> None:
    del beside.environ["QWORKER_APP"]

    assert "which service?" in beside.run("pause", code=2).err
    assert "say --app instead of --service" in (
        beside.run("pause", "--service", "bank", "--handler", "audit", code=2).err
    )
    beside.run("pause", "--app", "handlers")
    shards = beside.run("pause", "--service", "bank", "--shard", "0", code=2)
    assert "bank never ran with the lease store sqlite:///qworker.db" in shards.err
    beside.run("resume", "--service", "bank")
    beside.run("pause", "--service", "bank")
    assert beside.run("status", "--service", "bank", "--json").json["paused"]["service"]


def test_leases_that_nobody_else_sees_are_explained(shell: Shell) -> None:
    for command in ("pause", "resume", "status"):
        refused = shell.run(command, "--broker", "memory://here", code=3)
        assert "they live and end with its own process" in refused.err


def test_a_store_that_does_not_answer_is_told(shell: Shell) -> None:
    for command in ("pause", "resume", "status"):
        away = ("--leases", "redis://user:s3cret@127.0.0.1:1/0")
        result = shell.run(command, *away, "--dedup-timeout", "1", code=4)
        assert "s3cret" not in result.err
        assert "Traceback" not in result.err


def test_it_works_in_redis(shell: Shell, servers: Place) -> None:
    shell.environ |= {"QWORKER_BROKER_URL": servers.broker, "QWORKER_DEDUP_URL": servers.dedup}
    early = shell.run("pause", "--handler", "audit").err

    assert "bank never ran with the lease store redis://" in early
    assert "what is paused holds from its first start" in early
    assert paused(shell)["handlers"] == ["audit"]
    resumed = shell.run("resume")
    assert resumed.out.startswith("bank: resumed handler audit; nothing is paused\n")
    assert "never ran" not in resumed.err, "the store knows it by now"
