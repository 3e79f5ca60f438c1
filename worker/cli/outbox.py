"""``qworker outbox``: send what transactions have published and nobody has sent yet."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import click

from worker.cli.loading import load
from worker.cli.options import Seconds, SettingsCommand, WholeNumber, example, settings_options
from worker.errors import ConfigurationError
from worker.extras import how_to_install
from worker.logs import configure_early, configure_logging
from worker.names import check_name

if TYPE_CHECKING:
    from collections.abc import Callable

#: The core imports nothing of contrib; this command is the way there, by these names.
_RELAY = "worker.contrib.outbox"
#: Who reads the table, and what of an extra is imported: by a URL's scheme, or else SQLAlchemy.
_ROWS = {"django": ("worker.contrib.django", "django", "asgiref")}
_BY_SQLALCHEMY = ("worker.contrib.sqlalchemy", "sqlalchemy")
#: The driver that an extra of ours brings.
_DRIVER = "psycopg"
_VARIABLE = "QWORKER_OUTBOX_URL"


@click.command(
    cls=SettingsCommand,
    left="what is not confirmed is sent again",
    epilog=example(
        "qworker outbox --app handlers --database postgresql://user@host/bank",
        "qworker outbox --app handlers --database sqlite:///bank.db --burst    # what is there now",
    ),
)
@settings_options(
    "app",
    "broker",
    "dedup",
    "leases",
    "connect_timeout",
    "confirm_timeout",
    "lease_ttl",
    "dedup_timeout",
    "log_format",
    "log_level",
)
@click.option(
    "--database",
    metavar="URL",
    envvar=_VARIABLE,
    help="Where the table qworker_outbox is, as SQLAlchemy has it; or django://ALIAS."
    f" [{_VARIABLE}]",
)
@click.option(
    "--batch",
    type=WholeNumber(1, 10_000),
    default=200,
    metavar="N",
    help="Rows that are read and removed at once. [default: 200]",
)
@click.option(
    "--pause",
    type=Seconds(),
    default=0.5,
    metavar="SECONDS",
    help="Between two looks at the table. [default: 0.5]",
)
@click.option(
    "--grace",
    type=Seconds(),
    default=1.0,
    metavar="SECONDS",
    help="For which a row is left to the process that wrote it. [default: 1]",
)
@click.option(
    "--name",
    default="",
    metavar="NAME",
    help="Of this outbox, where the service has more of them, in other databases: one relay a name"
    " works at a time. [default: none]",
)
@click.option("--burst", is_flag=True, help="Exit once nothing is left, whoever sent it.")
def outbox(options: dict[str, Any], database: str | None, name: str, **given: Any) -> int:
    """Send the events that are committed in a database and not confirmed by the broker.

    The processes that publish send them at once; what a crash or an outage leaves is sent by this
    command, in order for each key. Run it beside the service, for as long as that runs, as often as
    you like: one of them works at a time, which the lease store of the service settles. A message
    that the broker refuses is told in the log, stays, and is tried again.

    SIGTERM and SIGINT end it within 15 seconds, also where servers hang; what is not confirmed then
    is sent by the next one.

    Exit codes: 0 asked to end, or nothing is left; 2 usage; 3 the app, its settings or the database
    are wrong; 4 the database or the lease store not reachable, with --burst the broker; 75 with
    --burst, what is left is refused by the broker, or left to another relay that gets nowhere.
    """
    configure_early(options)
    if not database:
        raise click.UsageError(
            "where is the table qworker_outbox? Say --database URL, as in sqlite:///bank.db, or set"
            f" {_VARIABLE}"
        )
    if name:
        check_name(name, "--name")
    app, settings = load(options)
    configure_logging(settings.log_format, settings.log_level, service=app.name)
    if settings.broker.startswith("memory:"):
        raise ConfigurationError(
            f"--broker {settings.broker}: it lives in one process, and this command is another"
        )
    run: Callable[..., int] = importlib.import_module(_RELAY).run
    store = _open(database, app.name)
    try:
        return run(app, store, name=name, **given)
    finally:
        store.close()


def _open(database: str, service: str) -> Any:
    """Return the rows of the service. Raises ConfigurationError."""
    try:
        return _rows(database).open(database, service)
    except ConfigurationError as error:
        if getattr(error.__cause__, "name", None) != _DRIVER:
            raise
        raise ConfigurationError(
            f"{error}: it needs the extra 'postgres': {how_to_install('postgres')}"
        ) from None


def _rows(database: str) -> Any:
    """Return what reads the table. Raises ConfigurationError without the extra."""
    module, extra, *brought = _ROWS.get(database.partition("://")[0], _BY_SQLALCHEMY)
    try:
        return importlib.import_module(module).OutboxRows
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in (extra, *brought):
            raise
        raise ConfigurationError(
            f"the outbox needs the extra {extra!r}: {how_to_install(extra)}"
        ) from None
