"""``qworker reshard``: change the number of shards of a service, while it runs."""

from __future__ import annotations

from time import monotonic, sleep, time
from typing import TYPE_CHECKING, Any

import click

from worker.cli.leasing import SETTINGS, leasing
from worker.cli.loading import service_option, target
from worker.cli.options import SettingsCommand, example, json_option, settings_options
from worker.cli.output import count, emit, emit_json, note
from worker.cli.overview import overview, progress
from worker.config import FIELDS
from worker.errors import LeasesUnavailable, UsageError

if TYPE_CHECKING:
    from worker.cli.leasing import Leasing
    from worker.sharding.generations import Plan

_LOOK = 0.25
#: Seconds without a living member after which somebody is told that there is none.
_LONELY = 2.0
_MOST_SHARDS = int(FIELDS["shards"].metadata["high"])


@click.command(
    cls=SettingsCommand,
    epilog=example(
        "qworker reshard --app handlers --to 16",
        "qworker reshard --app handlers --to 16 --no-wait    # the service goes on by itself",
    ),
)
@settings_options(*SETTINGS, "handlers")
@service_option
@click.option(
    "--to",
    "shards",
    type=click.IntRange(1, _MOST_SHARDS),
    required=True,
    metavar="M",
    help="How many shards there shall be.",
)
@click.option("--no-wait", is_flag=True, help="Only ask for it; the supervisors carry it out.")
@json_option
def reshard(
    options: dict[str, Any], *, service: str | None, shards: int, no_wait: bool, as_json: bool
) -> int:
    """Change the number of shards while publishers publish: nothing is lost or reordered.

    The supervisors of the service carry it out; this command asks for it and shows how it goes.
    Interrupted, it goes on all the same, and the same command shows it again. Members that die are
    replaced by others. Afterwards supervisors are started with the new number of --shards.

    The last step, the removal of the old queues, waits until retries that wait in the broker have
    returned; the new ones are consumed meanwhile.
    """
    with leasing(target(options, service)) as leases:
        leases.reshard(lambda plan: _changed(leases.service, plan, shards))
        if not no_wait:
            _watch(leases, quiet=as_json)
        known = leases.look()
        if as_json:
            facts = overview(leases.service, known, None, time())
            told = {name: facts[name] for name in ("service", "generation", "reshard")}
            emit_json({**told, "shards": len(facts["shards"])})
        elif known.plan is not None and known.plan.target is None:
            number, shards = known.plan.current.number, known.plan.current.shards
            emit(f"{leases.service} has {count(shards, 'shard')}, generation {number}")
    return 0


def _changed(service: str, plan: Plan | None, shards: int) -> Plan:
    if plan is None:
        raise UsageError(
            f"{service} was never started with this lease store: start it with --shards {shards}"
        )
    return plan.reshard(shards)


def _watch(leases: Leasing, *, quiet: bool) -> None:
    """Show what is done, until it is."""
    shown, seen = "", monotonic()
    while True:
        try:
            known = leases.look()
        except LeasesUnavailable as error:
            seen, text = monotonic(), f"the lease store is away: {error}"
        else:
            if known.plan is None or known.plan.target is None:
                return
            facts = overview(leases.service, known, None, time())
            if any(not member["silent_for"] for member in facts["members"]):
                seen = monotonic()
            text = progress(facts["reshard"])
        if monotonic() - seen > _LONELY:
            text = "no supervisor of the service runs: it goes on when one is started"
        if text != shown and not quiet:
            note(text)
        shown = text
        sleep(_LOOK)
