"""``qworker start``: run a service."""

from __future__ import annotations

from typing import Any

import click

from worker.cli.options import SettingsCommand, example, settings_options
from worker.config import FIELDS, load_settings
from worker.supervisor.supervisor import run_supervisor

_LOGGING = ("log_format", "log_level")


@click.command(
    cls=SettingsCommand,
    epilog=example(
        "qworker start --app handlers --shards 8",
        "qworker start --app handlers --broker amqp://user:password@host/vhost"
        " --dedup redis://host/0",
        "qworker start --app handlers --burst    # until every queue is empty",
    ),
)
@settings_options()
def start(options: dict[str, Any]) -> int:
    """Run the handlers of a service until SIGTERM.

    What is not said here is looked up: first in the environment (every option has a variable,
    such as QWORKER_SHARDS), then in qworker.toml or [tool.qworker] of pyproject.toml, then in
    what the code gave to App(...).

    SIGTERM and SIGINT drain, a second one stops at once; SIGHUP replaces the processes one by one
    with fresh code; SIGTTIN and SIGTTOU: one process more, one fewer; SIGUSR1 writes to the
    log what is in flight and where each thread is. What comes while it starts is done once it can.

    Exit codes: 0 drained; 2 usage; 3 the app or its settings are wrong; 4 broker, dedup store or
    lease store not reachable; 5 the processes keep dying; 75 work is left that will be delivered
    again (the drain deadline passed, or something is halted or paused at the end of a burst); 130
    stopped at once.
    """
    for name in _LOGGING:
        if name in options and options[name] not in FIELDS[name].metadata["choices"]:
            # The supervisor logs before its first process has judged the settings.
            load_settings(options)
    return run_supervisor(options)
