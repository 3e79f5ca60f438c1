"""Options of commands, made from the settings: their names, help and defaults have one home."""

from __future__ import annotations

import math
from functools import wraps
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from worker.cli.output import interruptible
from worker.config import FIELDS, environment_name

if TYPE_CHECKING:
    from collections.abc import Callable

F = TypeVar("F", bound="Callable[..., Any]")

#: The settings that help shows first; all others tune what seldom needs it.
_FIRST = (
    "app",
    "broker",
    "dedup",
    "shards",
    "processes",
    "concurrency",
    "prefetch",
    "single_active",
    "drain_timeout",
    "handlers",
    "burst",
    "http",
    "log_format",
    "log_level",
    "reload",
    "connect_timeout",
)
_METAVARS = {
    "archive": "URL",
    "app": "MODULE[:ATTRIBUTE]",
    "broker": "URL",
    "dedup": "URL",
    "handlers": "NAME",
    "http": "HOST:PORT",
}

#: The largest of the numbers that options take: of seconds that is 31 years.
_MOST = 1e9


class Look(NamedTuple):
    """How a setting looks on the command line."""

    flags: str
    metavar: str | None
    help: str


def look(name: str, *, runs: bool = True) -> Look:
    """Return how the setting ``name`` looks on the command line of what ``runs``, or looks on."""
    spec = FIELDS[name]
    facts, default = spec.metadata, spec.default
    dashed = name.replace("_", "-").removesuffix("s" if name == "handlers" else "")
    flags, metavar = f"--{dashed}", _METAVARS.get(name)
    if isinstance(default, bool):
        flags = f"--{dashed}/--no-{dashed}"
        shown = "on" if default else "off"
    else:
        shown = _shown(default)
        if facts["choices"]:
            metavar = "|".join(filter(None, facts["choices"]))
        elif metavar is None:
            metavar = _metavar(default)
    shown = facts["shown"] or shown
    help_ = facts["help"]
    if help_.partition(" ")[0].isalpha():  # not a URL
        help_ = help_[0].upper() + help_[1:]
    if name == "handlers":
        help_ = help_ if runs else "Of those who run only these handlers, with queues of their own"
        help_, shown = f"{help_} (repeatable)", "all"
    told = [f"default: {shown}"] if shown else []
    if facts["env"]:
        told.insert(0, environment_name(name))
    return Look(flags, metavar, f"{help_}. [{'; '.join(told)}]" if told else f"{help_}.")


def _shown(default: object) -> str:
    if isinstance(default, float):
        return f"{default:.0f}" if default.is_integer() else f"{default:g}"
    return str(default or "")


def _metavar(default: object) -> str:
    if isinstance(default, float):
        return "SECONDS"
    return "N" if isinstance(default, int) else "TEXT"


class SettingsCommand(click.Command):
    """A command whose help shows the seldom used settings last.

    ``left`` is what a Ctrl-C leaves behind where the command does not say it itself.
    """

    #: Settings that this command is about, though most others seldom need them.
    first: tuple[str, ...] = ()

    def __init__(self, *args: Any, left: str = "", **options: Any) -> None:
        super().__init__(*args, **options)
        self.left = left

    def invoke(self, ctx: click.Context) -> Any:
        """Run it."""
        with interruptible(self.left):
            return super().invoke(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options in two sections."""
        tuning = {name for name in FIELDS if name not in {*_FIRST, *self.first}}
        sections: dict[str, list[tuple[str, str]]] = {"Options": [], "Tuning": []}
        for parameter in self.get_params(ctx):
            record = None
            if isinstance(parameter, click.Option):
                record = parameter.get_help_record(ctx)
            if record is not None:
                sections["Tuning" if parameter.name in tuning else "Options"].append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


def settings_options(*names: str) -> Callable[[F], F]:
    """Give a command the options of these settings; of all, where none is named.

    The command gets ``options`` as its first argument: the settings that the command line really
    gave, by name, as text, so that the environment, files and the app can say the others.
    """
    wanted = names or tuple(FIELDS)

    def decorate(function: F) -> F:
        @wraps(function)
        def command(*args: Any, **values: Any) -> Any:
            given = {name: values.pop(name) for name in wanted}
            options = {n: v for n, v in given.items() if v is not None and v != ()}
            return function(options, *args, **values)

        decorated: Any = command
        for name in reversed(wanted):
            decorated = _option(name, runs=not names)(decorated)
        return decorated  # type: ignore[no-any-return] # click's decorators return what they get

    return decorate


def _option(name: str, *, runs: bool) -> Callable[[Any], Any]:
    flags, metavar, help_ = look(name, runs=runs)
    if isinstance(FIELDS[name].default, bool):
        return click.option(flags, name, default=None, help=help_)
    choices = tuple(filter(None, FIELDS[name].metadata["choices"]))

    def complete(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
        return [choice for choice in choices if choice.startswith(incomplete)]

    # Always text: worker.config converts it, and tells all mistakes at once.
    return click.option(
        flags,
        name,
        default=None,
        help=help_,
        metavar=metavar,
        multiple=name == "handlers",
        shell_complete=complete,
    )


class WholeNumber(click.IntRange):
    """A whole number from ``min`` on, up to ``max`` where one is set."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number; fail with what would do."""
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            until = "on" if self.max is None else f"to {self.max}"
            self.fail(f"{value!r} is not a whole number from {self.min} {until}", param, ctx)


class Number(click.FloatRange):
    """A number from zero to a billion; without zero where it is ``positive``.

    What is infinite, or no number, is within every range of click's; and no system waits a thousand
    years.
    """

    what = "number"

    def __init__(self, *, positive: bool = False) -> None:
        super().__init__(min=0, min_open=positive)  # help would tell a largest one to everybody

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the number; fail with what would do."""
        try:
            found = super().convert(value, param, ctx)
        except click.BadParameter:
            found = math.nan
        if not found <= _MOST:
            begin = "above zero" if self.min_open else "zero or more"
            self.fail(f"{value!r} is not a {self.what}, {begin}, {_MOST:.0f} at most", param, ctx)
        return found


class Seconds(Number):
    """Seconds, from zero on."""

    what = "number of seconds"


json_option = click.option("--json", "as_json", is_flag=True, help="Print facts as JSON.")


def example(*lines: str) -> str:
    """Return the end of a command's help that shows how it is used."""
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)
