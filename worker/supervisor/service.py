"""How a child process makes its service: import the app, settle its settings, build a consumer."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

from worker.config import load_settings, mask_url
from worker.consumer import Consumer
from worker.dedup.open import open_settled
from worker.errors import ConfigurationError
from worker.found import find_generations
from worker.importing import BrokenApp, load_app
from worker.inspector import Inspector
from worker.patience import patiently
from worker.resharding import Resharding, topology_of
from worker.supervisor.child import Service
from worker.supervisor.control import Terms
from worker.topology import queue_prefix

if TYPE_CHECKING:
    from worker.app import App
    from worker.config import Settings
    from worker.sharding.generations import Generation, Plan
    from worker.supervisor.control import Boot

logger = logging.getLogger("worker.supervisor.child")


def load_service(boot: Boot) -> Service:
    """Import the app that the settings name; raises ConfigurationError with all that is wrong.

    Where the module itself raised, the text ends with the user's own part of the traceback.
    """
    reference = str(boot.options.get("app") or load_settings(boot.options).app)
    try:
        app = load_app(reference)
    except BrokenApp as error:
        raise ConfigurationError(f"{error}\n\n{error.user_traceback}") from None
    settings = app.configure(boot.options)
    if settings.processes > settings.shards > 0 and boot.index == 0:
        logger.warning(
            "%d processes were asked for, but a shard is consumed by one: %d will run, as many as"
            " there are shards",
            settings.processes,
            settings.process_count,
        )
    app.only(settings.handlers)
    if not app.handlers and boot.index == 0:
        logger.warning("%s has no handlers: it consumes nothing", app.name)
    steps = Resharding(app, settings)
    look = partial(_look, app, settings)
    handlers = f"{len(app.handlers)} handler{'' if len(app.handlers) == 1 else 's'}"
    about = f"{app.name}: {handlers}, {mask_url(settings.broker)}; Ctrl-C or SIGTERM drains"
    consumer = partial(_consumer, app, settings)
    first = "" if boot.index else about  # one of the processes says so
    return Service(terms_of(app, settings), consumer, steps, look, first)


def _consumer(app: App, settings: Settings, plan: Plan, owner: bytes) -> Consumer:
    return Consumer(app, settings, plan=plan, owner=owner)


def _look(app: App, settings: Settings) -> list[Generation]:
    """Return the generations that the broker has of the service.

    Of the first supervisor they settle what the service has, so a dedup store that cannot be meant
    is found before: a start that fails for it settles nothing.
    """
    patiently(lambda: open_settled(settings), settings.connect_timeout).close()

    def look() -> list[Generation]:
        asked = settings.first_shards
        with Inspector(app.name, settings) as inspector:
            return find_generations(inspector, partial(topology_of, app, settings), asked)

    return patiently(look, settings.connect_timeout)


def terms_of(app: App, settings: Settings) -> Terms:
    """Return what the supervisor must know."""
    return Terms(
        service=app.name,
        queues=queue_prefix(app.name, settings.handlers),
        shards=settings.shards,
        processes=settings.process_count,
        most_processes=settings.most_processes,
        drain_timeout=settings.drain_timeout,
        watchdog=settings.watchdog,
        connect_timeout=settings.connect_timeout,
        leases=settings.leases_url,
        leases_origin=settings.leases_origin,
        lease_ttl=settings.lease_ttl,
        lease_timeout=min(settings.dedup_timeout, settings.lease_ttl / 4),
        single_active=settings.single_active,
        burst=settings.burst,
        http=settings.http,
        reload=settings.reload,
        log_format=settings.log_format,
        log_level=settings.log_level,
        handlers=app.observers(),
    )
