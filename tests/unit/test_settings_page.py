"""docs/settings.md has every setting there is, with its default and what the code says of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from worker.config import FIELDS, environment_name

PAGE = (Path(__file__).parents[2] / "docs" / "settings.md").read_text()


def number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:g}"


def default_of(name: str) -> str:
    """Return what the page says of the default."""
    default, shown = FIELDS[name].default, FIELDS[name].metadata["shown"]
    if shown:
        return str(shown)
    if isinstance(default, bool):
        return "on" if default else "off"
    if isinstance(default, int | float):
        return number(default)
    if name == "handlers":
        return "all"
    return f"`{default}`" if default else ""


def meaning_of(name: str) -> str:
    """Return what the page says it means, what it may be, and its variable if that is not as all.

    The choices of a text are in the help, or here.
    """
    facts = FIELDS[name].metadata
    told = [facts["help"]]
    choices = [choice for choice in facts["choices"] if choice]
    if any(choice not in facts["help"] for choice in choices):
        told.append(", ".join(f"`{choice}`" for choice in choices))
    low, high = facts["low"], facts["high"]
    if high is not None:
        told.append(f"{number(low)} to {number(high)}")
    elif low is not None:
        told.append(f"{number(low)} or more")
    if environment_name(name) != f"QWORKER_{name.upper()}":
        told.append(f"variable `{environment_name(name)}`")
    return "; ".join(told)


def row_of(name: str) -> str:
    return f"| `{name}` | {default_of(name)} | {meaning_of(name)} |"


@pytest.mark.parametrize("name", FIELDS)
def test_a_setting_is_on_the_page_as_the_code_has_it(name: str) -> None:
    assert row_of(name) in PAGE.splitlines()


def test_the_page_has_no_setting_twice_and_none_that_is_not_there() -> None:
    assert sorted(re.findall(r"^\| `([a-z_]+)` \|", PAGE, re.MULTILINE)) == sorted(FIELDS)
