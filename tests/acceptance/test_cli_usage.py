"""The command line itself: help, mistakes, and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from acceptance.commands import COMMAND, Shell
from waiting import until

_APP = """\
from worker import App

app = App("bank")


@app.on("user.deposited")
def record(event: dict) -> None:
    pass
"""
_STORE = """\
class Store:
    tier = "broken"
    shared = True

    @classmethod
    def open(cls, url, options):
        raise RuntimeError("who could know")

    apply = forget = warnings = mark_parked = parked = unpark = close = open
"""
COMMANDS = (
    "start", "pause", "resume", "check", "demo", "publish", "dlq", "status", "topology",
    "completion", "archive", "replay",
)  # fmt: skip


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path)
    yield shell
    shell.close()


def test_help_lists_every_command_with_what_it_does_and_an_example(shell: Shell) -> None:
    shown = shell.run("--help").out

    for command in COMMANDS:
        assert any(
            line.startswith(f"  {command} ") and line.endswith(".") for line in shown.splitlines()
        ), command
    assert "qworker start --app handlers" in shown


@pytest.mark.parametrize(
    "command",
    [(name,) for name in COMMANDS]
    + [("dlq", n) for n in ("list", "replay", "purge")]
    + [("archive", n) for n in ("export", "import", "info", "list", "show", "start", "trim")],
)
def test_the_help_of_a_command_has_an_example(shell: Shell, command: tuple[str, ...]) -> None:
    shown = shell.run(*command, "--help").out

    if command not in {("dlq",), ("archive",)}:  # whose own commands have them
        assert f"  qworker {' '.join(command)}" in shown.partition("Example:")[2]


def test_start_has_the_options_of_the_contract_with_their_defaults(shell: Shell) -> None:
    shown = " ".join(shell.run("start", "--help").out.split())

    for option, default in {
        "--app MODULE[:ATTRIBUTE]": "QWORKER_APP",
        "--broker URL": "QWORKER_BROKER_URL; default: sqlite:///qworker.db",
        "--dedup URL": "QWORKER_DEDUP_URL",
        "--shards N": "default: 1",
        "--processes N": "default: min(cores, shards)",
        "--concurrency N": "default: 16",
        "--prefetch N": "default: 256",
        "--single-active": "default: off",
        "--drain-timeout SECONDS": "default: 25",
        "--handler NAME": "default: all",
        "--burst": "default: off",
        "--http HOST:PORT": "default: off",
        "--log-format text|json": "default: text on a terminal, else json",
        "--log-level": "default: info",
        "--reload": "default: off",
    }.items():
        place = shown.index(option)
        assert default in shown[place : place + 250], option


@pytest.mark.parametrize("command", ["status", "topology", "reshard"])
def test_the_help_of_what_only_looks_says_whom_it_looks_for(shell: Shell, command: str) -> None:
    shown = " ".join(shell.run(command, "--help").out.split())

    assert "Of those who run only these handlers, with queues of their own" in shown
    assert "Run only these" not in shown


@pytest.mark.parametrize("command", [("archive", "list"), ("archive", "start"), ("replay",)])
def test_where_the_archive_is_comes_first_in_the_help_of_what_is_about_it(
    shell: Shell, command: tuple[str, ...]
) -> None:
    first = shell.run(*command, "--help").out.partition("\nTuning:")[0]

    assert "--archive URL" in first
    assert "Where 'qworker archive' keeps events" in " ".join(first.split())


def test_defaults_are_shown_as_people_write_them(shell: Shell) -> None:
    shown = " ".join(shell.run("start", "--help").out.split())

    assert "[default: 7776000]" in shown
    assert "[default: on]" in " ".join(shell.run("pause", "--help").out.split())


def test_the_version_is_told(shell: Shell) -> None:
    assert shell.run("--version").out.startswith("qworker ")


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("strat", "--app", "handlers"), "start"),
        (("dlq", "lsit"), "list"),
        (("puase", "--app", "handlers"), "pause"),
        (("pause", "--handlr", "record"), "--handler"),
        (("start", "--shard", "8"), "--shards"),
        (("publish", "--piority", "8", "user.deposited"), "--priority"),
    ],
)
def test_a_mistyped_word_is_a_usage_error_that_names_the_nearest(
    shell: Shell, arguments: tuple[str, ...], hint: str
) -> None:
    result = shell.run(*arguments, code=2)

    assert result.err.startswith("qworker: No such ")
    assert hint in result.err
    assert "Traceback" not in result.err


def test_a_mistyped_handler_is_a_usage_error_that_names_the_nearest(shell: Shell) -> None:
    shell.write("handlers.py", _APP)

    result = shell.run("check", "--app", "handlers", "--handler", "recrod", code=2)

    assert "did you mean record?" in result.out


def test_an_app_that_raises_shows_its_author_where(shell: Shell) -> None:
    shell.write(
        "handlers.py", "from worker import App\n\ndef make():\n    return 1 / 0\n\nmake()\n"
    )

    result = shell.run("topology", "--app", "handlers", code=3)

    assert "line 4, in make" in result.err
    assert "ZeroDivisionError" in result.err.splitlines()[-1]
    assert "importlib" not in result.err
    assert "worker/app.py" not in result.err


@pytest.mark.parametrize("command", [("start",), ("topology",), ("dlq", "list")])
def test_wrong_settings_are_told_all_at_once_each_with_its_source(
    shell: Shell, command: tuple[str, ...]
) -> None:
    shell.write("handlers.py", _APP)
    shell.write("qworker.toml", "prefetch = 0\n")
    shell.environ["QWORKER_CLAIM_TTL"] = "soon"

    result = shell.run(*command, "--app", "handlers", "--broker", "ampq://host", code=3)

    assert "prefetch in qworker.toml: 0 is too small" in result.err
    assert "QWORKER_CLAIM_TTL: 'soon' is not a number" in result.err
    assert "--broker: no broker speaks 'ampq'" in result.err
    assert "Traceback" not in result.err


def test_what_nobody_foresaw_shows_where_and_asks_to_be_reported(shell: Shell) -> None:
    shell.write("handlers.py", _APP)
    shell.write("stores.py", _STORE)

    result = shell.run("check", "--app", "handlers", "--dedup", "stores:Store", code=1)

    assert "RuntimeError: who could know" in result.err
    assert "please report it" in result.err.splitlines()[-1]


def test_a_group_without_a_command_shows_its_help(shell: Shell) -> None:
    assert "replay" in shell.run("dlq", code=2).out
    assert "publish" in shell.run(code=2).out


def test_a_wrong_log_level_is_a_mistake_like_every_other(shell: Shell) -> None:
    shell.write("handlers.py", _APP)

    result = shell.run("start", "--app", "handlers", "--log-level", "loud", "--shards", "x", code=3)

    assert "--log-level: 'loud' is none of debug, info, warning, error" in result.err
    assert "--shards: 'x' is not a whole number" in result.err


def test_what_was_set_by_the_environment_can_be_turned_off_by_an_option(shell: Shell) -> None:
    shell.write("handlers.py", _APP)
    shell.environ |= {"QWORKER_SINGLE_ACTIVE": "true", "QWORKER_PROCESSES": "2"}

    shell.run("topology", "--app", "handlers", "--shards", "2", code=3)
    shell.run("topology", "--app", "handlers", "--shards", "2", "--no-single-active")


def test_no_password_is_shown(shell: Shell) -> None:
    shell.write("handlers.py", _APP)
    broker = "amqp://user:s3cret@127.0.0.1:1/vhost"
    dedup = "redis://:s3cret@127.0.0.1:1/0"
    shell.environ |= {"QWORKER_BROKER_URL": broker, "QWORKER_DEDUP_URL": dedup}

    for command, code in ((("check",), 4), (("topology",), 0), (("dlq", "list"), 4)):
        result = shell.run(*command, "--app", "handlers", "--connect-timeout", "1", code=code)
        assert "s3cret" not in result.out + result.err
        assert "user:***@127.0.0.1" in result.out + result.err


def test_a_reader_that_goes_away_is_no_error(shell: Shell) -> None:
    shell.write("handlers.py", _APP)
    read, write = os.pipe()
    os.close(read)

    done = subprocess.run(
        [COMMAND, "topology", "--app", "handlers"],
        cwd=shell.folder, env=shell.environ, stdout=write, stderr=subprocess.PIPE, check=False,
    )  # fmt: skip
    os.close(write)

    assert done.stderr == b""


def test_ctrl_c_ends_a_command_without_a_traceback(shell: Shell) -> None:
    database = shell.folder / "qworker.db"
    database.touch()
    process = shell.start("publish", "-")
    assert process.stdin is not None
    process.stdin.write(b'{"name": "user.deposited"}\n')
    process.stdin.flush()
    until(lambda: database.stat().st_size, 30, "it has connected to the broker")

    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)

    assert process.returncode == 130
    assert b"Traceback" not in err
    assert b"go on with --from-line 2" in err


@pytest.mark.parametrize(
    ("name", "said"), [("bash", "complete"), ("zsh", "#compdef"), ("fish", "complete")]
)
def test_completion_prints_the_script_of_each_shell(shell: Shell, name: str, said: str) -> None:
    shown = shell.run("completion", name).out

    assert said in shown
    assert "_QWORKER_COMPLETE" in shown


def test_completion_knows_commands_options_and_values(shell: Shell) -> None:
    def complete(line: str) -> list[str]:
        shell.environ |= {
            "_QWORKER_COMPLETE": "bash_complete",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(line.split()) - (not line.endswith(" "))),
        }
        return [word.partition(",")[2] for word in shell.run(code=None).out.splitlines()]

    assert complete("qworker to") == ["topology"]
    assert complete("qworker sta") == ["start", "status"]
    assert "--shard" in complete("qworker pause --sh")
    assert complete("qworker dlq re") == ["replay"]
    assert "--shards" in complete("qworker start --sh")
    assert complete("qworker start --log-level w") == ["warning"]


def test_help_comes_at_once(shell: Shell) -> None:
    shell.environ["PYTHONPROFILEIMPORTTIME"] = "1"

    imported = {line.rpartition("|")[2].strip() for line in shell.run("--help").err.splitlines()}

    assert "click" in imported
    assert not imported & {"worker.cli.publish", "worker.app", "kombu", "msgspec", "rich", "redis"}
