"""The checks behind ``qworker check``: what an app asks for against what is there."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from enum import Enum
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import amqp.exceptions

from worker.assembly import check_store
from worker.cli.events import recipients
from worker.cli.generations import (
    Declared,
    check_mode,
    check_shards,
    find_plan,
    first_plan,
    look_at,
    open_lease_store,
    plan_in,
    told,
)
from worker.cli.loading import import_app, settle
from worker.cli.looking import looking
from worker.cli.output import count
from worker.config import mask_url
from worker.declaring import PLAIN_TYPES, check_type, declare_exchange, declare_queue
from worker.dedup.open import open_settled
from worker.errors import ConfigurationError, QworkerError
from worker.inspector import Inspector
from worker.sources import left_out
from worker.supervisor.probes import parse_address
from worker.supervisor.reload import NEEDS_WATCHFILES
from worker.topology import dead_letter_queue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from worker.app import App
    from worker.cli.looking import View
    from worker.config import Settings
    from worker.sharding.generations import Plan


class Level(Enum):
    """How good or bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """The answer of one check."""

    check: str
    level: Level
    text: str
    #: What the program exits with if nothing worse is found.
    exit_code: int = 0


def check_service(options: Mapping[str, object]) -> Iterator[Finding]:
    """Yield what is found about the service that ``options`` name, as it is found."""
    try:
        app = import_app(options)
    except QworkerError as error:
        yield _error("app", error)
        return
    yield _check_app(app)
    try:
        settings = settle(app, options)
        app.topology(settings)
    except QworkerError as error:
        yield _error("settings", error)
        return
    yield _ok("settings", _settings(settings))
    yield _ok("horizons", _horizons(app, settings))
    yield from _check_extras(settings)
    with looking(settings) as view:
        findings, plan = _check_leases(app, settings, view)
        yield from _check_broker(app, settings, view, plan)
        yield from _check_store(app, settings, view)
    yield from findings


def _check_app(app: App) -> Finding:
    if not app.handlers:
        return _warning("app", f"{app.name!r} has no handlers: it would consume nothing")
    number = count(len(app.handlers), "handler")
    return _ok("app", f"{app.name!r} has {number}: {', '.join(app.handlers)}")


def _settings(settings: Settings) -> str:
    processes = count(settings.process_count, "process", "processes")
    if settings.shards:
        told = f"{count(settings.shards, 'shard')} in {processes}"
    else:
        told = f"1 shard at the first start, later as many as there are, in {processes} at most"
    if settings.handlers:
        told += f", only {', '.join(settings.handlers)}"
    return told


def _check_extras(settings: Settings) -> Iterator[Finding]:
    """Tell what ``start`` would refuse of its listener and of ``--reload``."""
    if settings.http:
        try:
            parse_address(settings.http)
        except ConfigurationError as error:
            yield _error("http", error)
    if settings.reload and find_spec("watchfiles") is None:
        yield _error("reload", ConfigurationError(NEEDS_WATCHFILES))


def _horizons(app: App, settings: Settings) -> str:
    longest = max((h.retry.longest() for h in app.handlers.values()), default=0.0)
    return (
        f"retries wait up to {_duration(longest)} in all, ids are remembered for"
        f" {_duration(settings.retention)}"
    )


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def _check_broker(app: App, settings: Settings, view: View, plan: Plan | None) -> Iterator[Finding]:
    try:
        with Inspector(app.name, view.settings) as inspector:
            if missing := view.lacks(settings.broker):
                yield _ok("broker", f"{inspector.product}: {missing}; the first start makes it")
            else:
                yield _ok("broker", f"{inspector.product} answers at {mask_url(settings.broker)}")
            if settings.broker.startswith("memory:"):
                lonely = "memory:// lives and dies with one process: nobody else can publish to it"
                yield _warning("broker", lonely)
            try:
                plan = plan or find_plan(inspector, app, settings) or first_plan(settings)
                check_shards(app, settings, plan)
            except ConfigurationError as error:
                yield _error("shards", error)
            if plan is not None:
                declared = Declared(app, settings, plan)
                if plan.published.shards > 1:
                    yield _tell_spreading(declared)
                unknown = [*_check_types(app, view, declared)]
                yield from unknown
                if not unknown:  # to ask for one of these would end the connection
                    yield from _check_declarations(declared, inspector)
                yield from _check_sources(app, declared, inspector)
            yield from _check_recipients(app, inspector)
    except QworkerError as error:
        yield _error("broker", error)


def _tell_spreading(declared: Declared) -> Finding:
    if not declared.relay:
        return _ok("spreading", "the embedded broker spreads keys over the shards")
    return _ok(
        "spreading",
        "publishers that name the slot of a key, as qworker's do, reach its shard at once; what"
        f" others publish goes through {declared.relay!r}",
    )


def _check_types(app: App, view: View, declared: Declared) -> Iterator[Finding]:
    """Look whether the broker has exchanges of the types that the app binds."""
    for exchange in declared.exchanges:
        if exchange.foreign or exchange.type in PLAIN_TYPES:
            continue
        try:
            with Inspector(app.name, view.settings) as inspector:  # whose connection it may end
                inspector.ask(partial(check_type, exchange=exchange))
        except ConfigurationError as error:
            yield _error("declarations", error)


def _check_declarations(declared: Declared, inspector: Inspector) -> Iterator[Finding]:
    """Compare the exchanges and queues that are there with what start would declare.

    Declaring again what is there changes nothing, and the broker compares; what is not there is
    not declared.
    """
    missing, there = 0, 0
    problems: list[QworkerError] = []
    asked: list[tuple[bool, Callable[[Any], None]]] = [
        (x.foreign or inspector.has_exchange(x.name), partial(declare_exchange, exchange=x))
        for x in declared.exchanges
    ]
    asked += [
        (inspector.depth(q.name) is not None, partial(declare_queue, queue=q))
        for q in declared.queues
    ]
    for exists, declare in asked:
        if not exists:
            missing += 1
            continue
        try:
            inspector.ask(declare)
            there += 1
        except ConfigurationError as error:
            problems.append(error)
        except amqp.exceptions.AccessRefused as error:
            problems.append(ConfigurationError(f"the broker's user may not declare: {error}"))
    for problem in problems:
        yield _error("declarations", problem)
    if not problems:
        told = [f"{there} exchanges and queues are as they should be"] if there else []
        told += [f"{missing} will be declared at the next start"] if missing else []
        yield _ok("declarations", ", ".join(told))


def _check_sources(app: App, declared: Declared, inspector: Inspector) -> Iterator[Finding]:
    """Look whether the queues and streams that messages are taken from are there."""
    for line in left_out(app.sources, declared.sources):
        yield _warning("sources", line)
    for source in declared.sources:
        # An exclusive one can be looked at by its own connection alone.
        depth = None if source.declare == "exclusive" else inspector.depth(source.queue)
        consumers = 0 if depth is None or source.is_stream else depth.consumers
        if source.declare is None and depth is None:
            told = f"{source.queue!r} is not there: nothing is taken from it until it is"
            yield _warning("sources", told)
        elif consumers > 1:
            yield _warning(
                "sources",
                f"the queue {source.queue!r} has {consumers} consumers: what others take of it is"
                " not passed on, and keys lose their order",
            )
        else:
            kind = "the stream" if source.is_stream else "the queue"
            told = f"{kind} {source.queue!r} is passed on to the shards"
            if consumers:
                told += "; it has a consumer, which is this service or is waited for"
            yield _ok("sources", told)


def _check_leases(app: App, settings: Settings, view: View) -> tuple[list[Finding], Plan | None]:
    """Tell what the lease store is, and return the plan that it knows."""
    url = settings.leases_url
    try:
        with closing(open_lease_store(view.settings)) as store:
            known = look_at(store, app, settings)
            plan = plan_in(known)
            reach = f"{store.reach} ({view.lacks(url) or mask_url(url)})"
    except QworkerError as error:
        return [_error("leases", error)], None
    findings = [_ok("leases", f"{reach}; {told(plan)}" if plan is not None else reach)]
    if plan is not None:
        try:
            check_mode(app, settings, known, plan)
        except ConfigurationError as error:
            findings.append(_error("mode", error))
    shared = [what for what in ("broker", "dedup_url") if _is_shared(getattr(settings, what))]
    if not _is_shared(url) and shared:
        findings[0] = _warning(
            "leases",
            f"{reach}: a second supervisor of the service would consume the same shards at the"
            " same time, and keys would lose their order; set --leases to a store that all of"
            " them reach",
        )
    return findings, plan


def _is_shared(url: str) -> bool:
    """Tell whether more than one process can use what this URL names."""
    return not url.startswith("memory:")


def _check_recipients(app: App, inspector: Inspector) -> Iterator[Finding]:
    """Look whether somebody receives the commands that the app's code knows."""
    for service, names in sorted(recipients().items()):
        if service == app.name:
            continue
        if inspector.depth(dead_letter_queue(service)) is None:
            yield _warning(
                "recipients",
                f"no service {service!r} was ever started on this broker: publishing"
                f" {', '.join(sorted(names))} fails until it was",
            )
        else:
            yield _ok("recipients", f"{service!r} receives {', '.join(sorted(names))}")


def _check_store(app: App, settings: Settings, view: View) -> Iterator[Finding]:
    url = settings.dedup_url
    try:
        store = open_settled(view.settings)
        try:
            told = f"{store.tier} ({view.lacks(url) or mask_url(url)})"
            if check_store(app, store):
                told += f"; revisions are remembered for {_duration(settings.revision_retention)}"
            yield _ok("dedup", told)
            for warning in store.warnings():
                yield _warning("dedup", warning)
        finally:
            store.close()
    except QworkerError as error:
        yield _error("dedup", error)


def _ok(check: str, text: str) -> Finding:
    return Finding(check, Level.OK, text)


def _warning(check: str, text: str) -> Finding:
    return Finding(check, Level.WARNING, text)


def _error(check: str, error: QworkerError) -> Finding:
    shown = getattr(error, "user_traceback", "")
    text = f"{shown}\n{error}" if shown else str(error)
    return Finding(check, Level.ERROR, mask_url(text), error.exit_code)
