"""``qworker topology``: the exchanges, queues and bindings of a service."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import amqp.exceptions
import click

from worker.cli.generations import (
    Declared,
    check_shards,
    find_plan,
    first_plan,
    known_plan,
    told,
)
from worker.cli.loading import load
from worker.cli.looking import looking
from worker.cli.options import SettingsCommand, example, json_option, settings_options
from worker.cli.output import emit, emit_json, emit_table, note
from worker.config import mask_url
from worker.declaring import declare, declare_source, not_there
from worker.errors import ConfigurationError, Unreachable
from worker.inspector import Depth, Inspector
from worker.sharding.slots import slot_routing_key
from worker.sources import left_out

if TYPE_CHECKING:
    from collections.abc import Mapping

    from worker.app import App
    from worker.config import Settings
    from worker.sharding.generations import Plan
    from worker.sources import Source
    from worker.topology import Bind, Exchange

#: What is shown where nobody knows what a service has.
_FIRST = "what a first start would declare"


@click.command(
    cls=SettingsCommand,
    left="what was declared by then stays; the same command goes on",
    epilog=example(
        "qworker topology --app handlers --shards 8",
        "qworker topology --app handlers --shards 8 --declare    # before the first start",
    ),
)
@settings_options(
    "app",
    "broker",
    "dedup",
    "leases",
    "shards",
    "handlers",
    "single_active",
    "connect_timeout",
    "queue_type",
    "max_priority",
    "events_exchange",
    "commands_exchange",
)
@click.option("--declare", "is_declared", is_flag=True, help="Declare what is not there.")
@json_option
def topology(options: dict[str, Any], *, is_declared: bool, as_json: bool) -> int:
    """Show the exchanges, queues and bindings that a service declares, and how full its queues are.

    While its number of shards is being changed, these are the old ones and the new ones. Where a
    server that knows does not answer, what a first start would declare is shown, and said to be
    that. Nothing is made by that, also no file of an SQLite broker.
    """
    app, settings = load(options)
    with looking(settings, makes=is_declared) as view:
        plan, problem = _plan(app, view.settings, is_needed=is_declared)
        check_shards(app, settings, plan)
        declared = Declared(app, settings, plan)
        if is_declared:
            with Inspector(app.name, settings) as inspector:
                _declare(inspector, declared)
        found, unknown = _look(view.settings, app.name, declared)
    if as_json:
        emit_json(_facts(settings, plan, declared, found, is_known=not problem))
    else:
        generation = f"not asked: {_FIRST}" if problem else told(plan)
        emit(f"{declared.service} at {mask_url(settings.broker)}, {generation}")
        _show(declared, found)
    if missing := view.lacks(settings.broker):
        note(f"qworker: {missing}; the first start, or --declare, makes it")
    for line in left_out(app.sources, declared.sources):
        note(f"qworker: {line}")
    if problem:
        note(
            "qworker: which generation of the queues it has is not known, and what is shown is"
            f" {_FIRST}: {problem}"
        )
    if unknown:
        note(f"qworker: the depths are not known, nor what is there: {unknown}")
    return 0


def _plan(app: App, settings: Settings, *, is_needed: bool) -> tuple[Plan, str]:
    """Return the plan of the service, as the lease store and the broker know it; or why not."""
    try:
        plan = known_plan(app, settings)
        if plan is None:
            with Inspector(app.name, settings) as inspector:
                plan = find_plan(inspector, app, settings)
    except Unreachable as error:
        if is_needed:
            raise
        return first_plan(settings), mask_url(str(error))
    return plan or first_plan(settings), ""


def _declare(inspector: Inspector, declared: Declared) -> None:
    missing: list[str] = []
    try:
        for topology in declared.topologies:
            missing += inspector.ask(partial(declare, topology=topology, thoroughly=True))
    except amqp.exceptions.AccessRefused as error:
        raise ConfigurationError(f"the broker's user may not declare this: {error}") from None
    for source in declared.sources:
        if source.declare in {None, "exclusive"}:  # that one belongs to who consumes it
            continue
        try:
            inspector.ask(partial(declare_source, source=source))
        except amqp.exceptions.ChannelError as error:
            told = f"the source {source.name!r} is not declared, and all else is: {error}"
            raise ConfigurationError(told) from None
    if missing:
        raise ConfigurationError(f"{not_there(dict.fromkeys(missing))}; all else is declared")


@dataclass(frozen=True, slots=True)
class _Found:
    """What the broker has, by name; what could not be asked for is not in it."""

    exchanges: Mapping[str, bool] = field(default_factory=dict)
    #: None: it is not there.
    queues: Mapping[str, Depth | None] = field(default_factory=dict)

    def has_queue(self, name: str) -> bool | None:
        """Tell whether a queue is there; None: nobody knows."""
        return self.queues[name] is not None if name in self.queues else None


def _look(settings: Settings, service: str, declared: Declared) -> tuple[_Found, str]:
    """Return what is there, or why that is not known."""
    queues = [queue.name for queue in declared.queues]
    # An exclusive one can be looked at by its own connection alone.
    queues += [each.queue for each in declared.sources if each.declare != "exclusive"]
    try:
        with Inspector(service, settings) as inspector:
            names = [each.name for each in declared.exchanges]
            exchanges = {name: inspector.has_exchange(name) for name in names}
            return _Found(exchanges, {name: inspector.depth(name) for name in queues}), ""
    except Unreachable as error:
        return _Found(), mask_url(str(error))


def _show(declared: Declared, found: _Found) -> None:
    emit()
    emit_table(
        ("exchange", "type", "kind", "is"),
        [
            (each.name, each.type, _kind_of(each), _is(found.exchanges.get(each.name)))
            for each in declared.exchanges
        ],
    )
    emit()
    emit_table(
        ("queue", "shard", "ready", "consumers"),
        [
            (queue.name, queue.shard, *_told(found.queues, queue.name))
            for queue in declared.queues
        ],
    )  # fmt: skip
    emit()
    emit_table(
        ("from", "by", "to"), [(bind.source, _by(bind), bind.target) for bind in declared.binds]
    )
    if declared.sources:
        emit()
        emit_table(
            ("source", "kind", "is"),
            [
                (each.queue, _kind(each), _is(found.has_queue(each.queue)))
                for each in declared.sources
            ],
        )


def _is(there: bool | None) -> str:  # noqa: FBT001 - the one thing that it words
    return "?" if there is None else "there" if there else "not there"


def _kind_of(exchange: Exchange) -> str:
    if exchange.foreign:
        return "somebody else's"
    return "durable" if exchange.durable else "transient"


def _kind(source: Source) -> str:
    kind = f"stream, from {source.offset}" if source.is_stream else "queue"
    declared = "" if source.declare in {None, "stream"} else f"{source.declare} "
    return f"{declared}{kind}"


def _told(depths: Mapping[str, Depth | None], queue: str) -> tuple[object, object]:
    if queue not in depths:
        return "?", "?"
    depth = depths[queue]
    return ("not there", "") if depth is None else (depth.ready, depth.consumers)


def _by(bind: Bind) -> str:
    if bind.slots:
        first = [slot_routing_key(slot) for slot in bind.slots[:3]]
        return f"{', '.join(first)}{', …' if len(bind.slots) > len(first) else ''}"
    arguments = " ".join(f"{name}={value}" for name, value in bind.arguments.items())
    return f"{bind.routing_key} {arguments}".strip()


def _facts(
    settings: Settings,
    plan: Plan,
    declared: Declared,
    found: _Found,
    *,
    is_known: bool,
) -> dict[str, Any]:
    queues = []
    for queue in declared.queues:
        depth = found.queues.get(queue.name)
        queues.append(
            {
                "name": queue.name,
                "shard": queue.shard,
                "arguments": dict(queue.arguments),
                "there": found.has_queue(queue.name),
                "ready": None if depth is None else depth.ready,
                "consumers": None if depth is None else depth.consumers,
            }
        )
    return {
        "service": declared.service,
        "broker": mask_url(settings.broker),
        "generation": plan.published.number if is_known else None,
        "consumed": plan.consumed.number if is_known else None,
        "phase": None if plan.phase is None else plan.phase.value,
        "exchanges": [
            {
                "name": each.name,
                "type": each.type,
                "durable": each.durable,
                "arguments": dict(each.arguments),
                "declare": not each.foreign,
                "there": found.exchanges.get(each.name),
            }
            for each in declared.exchanges
        ],
        "queues": queues,
        "bindings": [
            {
                "source": bind.source,
                "target": bind.target,
                "to": "queue" if bind.to_queue else "exchange",
                "routing_key": key,
                "arguments": dict(bind.arguments),
            }
            for bind in declared.binds
            for key in [slot_routing_key(slot) for slot in bind.slots] or [bind.routing_key]
        ],
        "sources": [
            {
                "name": each.name,
                "queue": each.queue,
                "kind": "stream" if each.is_stream else "queue",
                "offset": None if each.offset is None else str(each.offset),
                "declare": each.declare,
                "there": found.has_queue(each.queue),
            }
            for each in declared.sources
        ],
    }
