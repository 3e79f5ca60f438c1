"""``qworker topology``: the exchanges, queues and bindings of a service."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import amqp.exceptions
import click

from worker.cli.inspector import Depth, Inspector
from worker.cli.loading import load
from worker.cli.options import SettingsCommand, example, json_option, settings_options
from worker.cli.output import count, emit, emit_json, emit_table, note
from worker.config import mask_url
from worker.errors import ConfigurationError, Unreachable
from worker.sharding.slots import slot_routing_key
from worker.topology import declare

if TYPE_CHECKING:
    from collections.abc import Mapping

    from worker.config import Settings
    from worker.topology import Bind, Topology


@click.command(
    cls=SettingsCommand,
    epilog=example(
        "qworker topology --app handlers --shards 8",
        "qworker topology --app handlers --shards 8 --declare    # before the first start",
    ),
)
@settings_options(
    "app",
    "broker",
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

    Where the broker does not answer, what would be declared is shown nevertheless.
    """
    app, settings = load(options)
    plan = app.topology(settings)
    if is_declared:
        with Inspector(plan.service, settings) as inspector:
            _declare(inspector, plan)
    depths, there, problem = _depths(settings, plan)
    if as_json:
        emit_json(_facts(settings, plan, depths))
    else:
        _show(settings, plan, depths)
    if there not in {0, settings.shards}:
        note(
            f"qworker: the broker has {count(there, 'shard')}, so this is not how it is: say"
            f" --shards {there}"
        )
    if problem:
        note(f"qworker: the depths are not known: {problem}")
    return 0


def _declare(inspector: Inspector, plan: Topology) -> None:
    try:
        inspector.ask(lambda channel: declare(channel, plan, thoroughly=True))
    except amqp.exceptions.AccessRefused as error:
        raise ConfigurationError(f"the broker's user may not declare this: {error}") from None


def _depths(settings: Settings, plan: Topology) -> tuple[Mapping[str, Depth | None], int, str]:
    """Return the depth of each queue and the number of shards, or why they are not known."""
    try:
        with Inspector(plan.service, settings) as inspector:
            depths = {queue.name: inspector.depth(queue.name) for queue in plan.queues}
            return depths, inspector.shards(plan.service, plan.generation), ""
    except Unreachable as error:
        return {}, 0, mask_url(str(error))


def _show(settings: Settings, plan: Topology, depths: Mapping[str, Depth | None]) -> None:
    emit(f"{plan.service} at {mask_url(settings.broker)}, generation {plan.generation}")
    emit()
    emit_table(
        ("exchange", "type", "kind"),
        [
            (exchange.name, exchange.type, "durable" if exchange.durable else "transient")
            for exchange in plan.exchanges
        ],
    )
    emit()
    emit_table(
        ("queue", "shard", "ready", "consumers"),
        [
            (queue.name, queue.shard, *_told(depths, queue.name))
            for queue in plan.queues
        ],
    )  # fmt: skip
    emit()
    emit_table(("from", "by", "to"), [(bind.source, _by(bind), bind.target) for bind in plan.binds])


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
    settings: Settings, plan: Topology, depths: Mapping[str, Depth | None]
) -> dict[str, Any]:
    queues = []
    for queue in plan.queues:
        depth = depths.get(queue.name)
        queues.append(
            {
                "name": queue.name,
                "shard": queue.shard,
                "arguments": dict(queue.arguments),
                "there": None if queue.name not in depths else depth is not None,
                "ready": None if depth is None else depth.ready,
                "consumers": None if depth is None else depth.consumers,
            }
        )
    return {
        "service": plan.service,
        "broker": mask_url(settings.broker),
        "generation": plan.generation,
        "exchanges": [
            {"name": x.name, "type": x.type, "durable": x.durable, "arguments": dict(x.arguments)}
            for x in plan.exchanges
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
            for bind in plan.binds
            for key in [slot_routing_key(slot) for slot in bind.slots] or [bind.routing_key]
        ],
    }
