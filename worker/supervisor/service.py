"""How a child process makes its service: import the app, settle its settings, build a consumer."""

from __future__ import annotations

import logging
import traceback
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import worker
from worker.app import load_app
from worker.config import load_settings
from worker.consumer import Consumer
from worker.errors import ConfigurationError
from worker.supervisor.child import Service
from worker.supervisor.control import Terms

if TYPE_CHECKING:
    from worker.app import App
    from worker.config import Settings
    from worker.supervisor.control import Boot

logger = logging.getLogger("worker.supervisor.child")

_PACKAGE = Path(worker.__path__[0]).resolve()


def load_service(boot: Boot) -> Service:
    """Import the app that the settings name; raises ConfigurationError with all that is wrong.

    Where the module itself raised, the text ends with the user's own part of the traceback.
    """
    reference = str(boot.options.get("app") or load_settings(boot.options).app)
    _refuse_own_name(reference)
    try:
        app = load_app(reference)
    except ConfigurationError as error:
        if error.__cause__ is None or isinstance(error.__cause__, ModuleNotFoundError):
            raise
        raise ConfigurationError(f"{error}\n\n{user_traceback(error.__cause__)}") from None
    except SystemExit as error:
        raise ConfigurationError(
            f"--app {reference}: importing it called sys.exit({error.code!r}); a module with"
            " handlers must import without ending the program"
        ) from None
    settings = app.configure(boot.options)
    if settings.processes > settings.shards and boot.index == 0:
        logger.warning(
            "%d processes were asked for, but a shard is consumed by one: with %d shards there will"
            " be %d",
            settings.processes,
            settings.shards,
            settings.process_count,
        )
    app.only(settings.handlers)
    return Service(terms_of(app, settings), partial(_consumer, app, settings))


def _consumer(app: App, settings: Settings, fences: dict[int, int], owner: bytes) -> Consumer:
    return Consumer(app, settings, shards=[*fences], owner=owner, fences=fences)


def terms_of(app: App, settings: Settings) -> Terms:
    """Return what the supervisor must know."""
    in_memory = "memory:" in (settings.broker[:7], settings.dedup_url[:7])
    return Terms(
        service=app.name,
        shards=settings.shards,
        processes=settings.process_count,
        most_processes=1 if in_memory else settings.shards,
        drain_timeout=settings.drain_timeout,
        watchdog=settings.watchdog,
        connect_timeout=settings.connect_timeout,
        burst=settings.burst,
        http=settings.http,
        reload=settings.reload,
        log_format=settings.log_format,
        log_level=settings.log_level,
    )


def _refuse_own_name(reference: str) -> None:
    """Say so where the user's module has the name of this package, which is imported already."""
    module = reference.partition(":")[0]
    if module.partition(".")[0] != _PACKAGE.name:
        return
    for mine in (Path(f"{_PACKAGE.name}.py"), Path(_PACKAGE.name)):
        if mine.exists() and mine.resolve() != _PACKAGE:
            raise ConfigurationError(
                f"--app {reference}: {mine.resolve()} has the name of qworker's own package:"
                " give it another"
            )


def user_traceback(error: BaseException) -> str:
    """Return the traceback of ``error`` without the frames of this package and of the importer."""
    told = traceback.TracebackException.from_exception(error)
    part: traceback.TracebackException | None = told
    while part is not None:
        part.stack = traceback.StackSummary.from_list(
            [frame for frame in part.stack if not _is_ours(frame.filename)]
        )
        part = part.__cause__ or part.__context__
    return "".join(told.format()).rstrip()


def _is_ours(filename: str) -> bool:
    return (
        filename.startswith("<frozen importlib")
        or filename.endswith("/importlib/__init__.py")
        or Path(filename).is_relative_to(_PACKAGE)
    )
