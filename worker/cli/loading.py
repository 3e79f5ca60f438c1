"""From the options of a command to an app and its settings."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING

import click

from worker.codec import Codec
from worker.config import load_settings
from worker.importing import load_app

if TYPE_CHECKING:
    from collections.abc import Mapping

    from worker.app import App
    from worker.config import Settings


@dataclass(frozen=True, slots=True)
class Target:
    """The service that a command is about."""

    service: str
    settings: Settings
    #: None where only the service's name was said.
    app: App | None = None

    @property
    def codec(self) -> Codec:
        """Reads and writes the messages of the service."""
        return Codec.of(self.service, self.settings)


def import_app(options: Mapping[str, object]) -> App:
    """Import the app that the options, the environment or a file name.

    Raises ConfigurationError; BrokenApp where the app's own module raised.
    """
    return load_app(str(options.get("app") or load_settings(options).app))


def settle(app: App, options: Mapping[str, object]) -> Settings:
    """Merge the options with every other source of settings.

    Raises ConfigurationError, and UsageError for a handler that the app does not have.
    """
    settings = app.configure(options)
    app.only(settings.handlers)
    return settings


def load(options: Mapping[str, object]) -> tuple[App, Settings]:
    """Import the app and settle its settings. Raises as both of them do."""
    app = import_app(options)
    return app, settle(app, options)


def target(
    options: Mapping[str, object], service: str | None, said_by: str = "--service"
) -> Target:
    """Return the service that the option ``said_by`` names, or that of the app.

    Raises ConfigurationError, and click.UsageError where neither says which.
    """
    if service is None:
        if not options.get("app") and not load_settings(options).app:
            raise click.UsageError(
                f"which service? Say {said_by} NAME, or --app MODULE[:ATTRIBUTE] (QWORKER_APP)"
            )
        app, settings = load(options)
        return Target(app.name, settings, app)
    if options.get("app"):
        raise click.UsageError("say --service or --app: the app has a name already")
    return Target(service, load_settings(options))


def no_handler(app: App, name: str) -> str:
    """Return what to tell somebody who means a handler that the app does not have; else nothing."""
    if name in app.handlers:
        return ""
    near = get_close_matches(name, app.handlers, n=1)
    hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(sorted(app.handlers))}"
    return f"App({app.name!r}) has no handler {name!r}; {hint}"


service_option = click.option(
    "--service", metavar="NAME", help="The service, where its code is not here to be an --app."
)
