"""The list of commands. Each is imported when it is asked for, so that help comes at once."""

# ruff: noqa: ARG002 - the signatures are click's

from __future__ import annotations

import importlib
from difflib import get_close_matches
from typing import NamedTuple, cast

import click
from click.shell_completion import CompletionItem


class Entry(NamedTuple):
    """A command: where it is, and what it does in one line."""

    name: str
    #: ``module:attribute``.
    place: str
    help: str


_SECTIONS: tuple[tuple[str, tuple[Entry, ...]], ...] = (
    (
        "Run",
        (
            Entry("start", "worker.cli.start:start", "Run a service: its handlers, until SIGTERM."),
            Entry(
                "reshard",
                "worker.cli.reshard:reshard",
                "Change the number of shards of a service, while it runs.",
            ),
            Entry("pause", "worker.cli.pause:pause", "Pause a service, shards or handlers."),
            Entry("resume", "worker.cli.pause:resume", "Resume what is paused."),
            Entry(
                "outbox",
                "worker.cli.outbox:outbox",
                "Send what is committed in a database and not sent yet.",
            ),
            Entry("check", "worker.cli.check:check", "Tell whether a service could run here."),
            Entry("demo", "worker.cli.demo:demo", "Show it at work, with no server."),
        ),
    ),
    (
        "Messages",
        (
            Entry("publish", "worker.cli.publish:publish", "Publish an event, or a file of them."),
            Entry("dlq", "worker.cli.dlq:dlq", "Read, replay and purge dead letters."),
            Entry(
                "archive",
                "worker.cli.archive_import:archive",
                "Keep every event; read, export and import what is kept.",
            ),
            Entry(
                "replay",
                "worker.cli.replay:replay",
                "Send archived events to one service again.",
            ),
        ),
    ),
    (
        "Look",
        (
            Entry(
                "status",
                "worker.cli.status:status",
                "Show who runs a service, its shards and their backlog.",
            ),
            Entry(
                "topology",
                "worker.cli.topology:topology",
                "Show or declare exchanges, queues and bindings.",
            ),
            Entry(
                "completion",
                "worker.cli.completion:completion",
                "Print the script that completes commands in your shell.",
            ),
        ),
    ),
)
_ENTRIES = {entry.name: entry for _, entries in _SECTIONS for entry in entries}


class Group(click.Group):
    """A group that says what a mistyped command may have meant, and shows help without one."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Show help where nothing is said, and exit as for every wrong usage."""
        if not args and not ctx.resilient_parsing:
            click.echo(ctx.get_help())
            ctx.exit(click.UsageError.exit_code)
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command. Raises click.UsageError with the nearest name there is."""
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            if ctx.resilient_parsing:  # of shell completion
                return None, None, args[1:]
            names = self.list_commands(ctx)
            begun = [each for each in names if each.startswith(name)]
            near = begun if len(begun) == 1 else get_close_matches(name, names, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise click.UsageError(f"No such command {name!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)


class Commands(Group):
    """All commands of the program, by section."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, in the order in which help shows them."""
        return list(_ENTRIES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command and return it; None where there is no such command."""
        entry = _ENTRIES.get(cmd_name)
        if entry is None:
            return None
        module, _, attribute = entry.place.partition(":")
        return cast("click.Command", getattr(importlib.import_module(module), attribute))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Offer the names, without importing a command, and the options."""
        names = [
            CompletionItem(entry.name, help=entry.help)
            for entry in _ENTRIES.values()
            if entry.name.startswith(incomplete)
        ]
        return [*names, *click.Command.shell_complete(self, ctx, incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections, without importing a command."""
        width = max(map(len, _ENTRIES))
        for title, entries in _SECTIONS:
            with formatter.section(title):
                formatter.write_dl([(entry.name.ljust(width), entry.help) for entry in entries])


def _show_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:  # noqa: FBT001 - click's signature
    if not value or ctx.resilient_parsing:
        return
    from importlib.metadata import version  # takes longer than all the rest here

    click.echo(f"qworker {version('qworker-runtime')}")
    ctx.exit()


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="\b\nAn example, with nothing installed but qworker:\n"
    "  qworker start --app handlers --shards 8\n"
    "  qworker publish --app handlers user.deposited user_id=u1 amount=10",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version and exit.",
)
def qworker() -> None:
    """Run handlers of events and commands once for each id, in order for each key.

    'qworker COMMAND --help' has the options of a command, and an example.
    """
