"""The command line ``qworker``: one file a command group, each imported when it is asked for.

::

    entry      main(): runs a command, turns what it raises into a text and an exit code
    group      the list of commands; imports them late; did-you-mean
    options    options of commands, made from ``worker.config.FIELDS``
    loading    from options to an app and its settings
    output     tables, JSON and plain text
"""

from worker.cli.entry import main

__all__ = ["main"]
