"""``qworker completion``: the script that completes commands and options in a shell."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from worker.cli.group import qworker
from worker.cli.options import example
from worker.cli.output import emit


@click.command(
    epilog=example(
        "source <(qworker completion bash)     # in ~/.bashrc",
        "source <(qworker completion zsh)      # in ~/.zshrc",
        "qworker completion fish > ~/.config/fish/completions/qworker.fish",
    )
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that completes commands, options and their values in your shell."""
    kind = get_completion_class(shell)
    if kind is None:  # pragma: no cover - all of the choices are click's own
        raise click.UsageError(f"click cannot complete in {shell}")
    emit(kind(qworker, {}, "qworker", "_QWORKER_COMPLETE").source())
