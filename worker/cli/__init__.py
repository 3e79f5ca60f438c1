"""The command line ``qworker``: one file a command group, each imported when it is asked for.

::

    entry      main(): runs a command, turns what it raises into a text and an exit code
    group      the list of commands; imports them late; did-you-mean
    options    options of commands, made from ``worker.config.FIELDS``
    loading    from options to an app and its settings
    output     tables, JSON and plain text
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from worker.supervisor.signals import hold

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the program's exit code; see :func:`worker.cli.entry.main`.

    Before anything is imported that takes time, signals are held: what comes meanwhile is done as
    soon as it can be, instead of ending the process in the middle of an import.
    """
    hold()
    from worker.cli.entry import main as run  # the first that takes time

    return run(arguments)
