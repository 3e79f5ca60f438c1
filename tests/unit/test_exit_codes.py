"""What the help of a command says of its exit codes is what the page of operators says."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from worker.cli.group import qworker

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"
ROW = re.compile(r"^\| (\d+) \| (.+?) \| (.+) \|$", re.MULTILINE)
#: Those whose help lists all of their codes.
COMMANDS = ["start", "check", "status", "pause", "reshard", "outbox"]


def listed() -> list[tuple[int, set[str]]]:
    """Return each row of the table: a code, and the commands that may end with it."""
    rows = ROW.findall(PAGE.read_text().partition("## Exit codes")[2])
    return [(int(code), set(re.findall(r"`(.+?)`", who))) for code, who, _ in rows]


def told(command: str) -> set[int]:
    """Return the codes that the help of a command names."""
    found = qworker.get_command(click.Context(qworker), command)
    assert found is not None
    help_ = " ".join(str(found.help).split()).partition("Exit codes: ")[2]
    return {int(code) for code in re.findall(r"(?:^|[;:,] )(\d+) [a-z]", help_)}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_code_that_help_names_is_in_the_table(command: str) -> None:
    assert told(command) <= {code for code, who in listed() if not who or command in who}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_code_that_the_table_gives_to_a_command_is_in_its_help(command: str) -> None:
    of_it = {code for code, who in listed() if command in who}

    assert of_it | {2, 3, 4} <= told(command)


def test_the_table_has_a_row_for_every_code() -> None:
    assert sorted({code for code, _ in listed()}) == [0, 1, 2, 3, 4, 5, 75, 130]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_that_the_lease_store_may_be_what_does_not_answer(command: str) -> None:
    found = qworker.get_command(click.Context(qworker), command)
    assert found is not None
    (sentence,) = re.findall(r" 4 [^;.]*", " ".join(str(found.help).split()))

    assert "lease store" in sentence
