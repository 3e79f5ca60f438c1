"""``qworker reshard``: change the number of shards of a service, while it runs."""

from __future__ import annotations

from time import monotonic, sleep, time
from typing import TYPE_CHECKING, Any

import click

from worker.cli.leasing import SETTINGS, leasing, never_ran
from worker.cli.loading import service_option, target
from worker.cli.options import (
    SettingsCommand,
    WholeNumber,
    example,
    json_option,
    settings_options,
)
from worker.cli.output import count, emit, emit_json, note
from worker.cli.overview import overview, progress
from worker.config import FIELDS
from worker.errors import LeasesUnavailable, UsageError
from worker.names import front_exchange
from worker.transport.capabilities import capabilities_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from worker.cli.leasing import Known, Leasing
    from worker.sharding.generations import Generation, Plan

_LOOK = 0.25
_EXIT_OTHERWISE = 1
#: Seconds without a living member after which somebody is told that there is none.
_LONELY = 2.0
#: What a Ctrl-C leaves behind.
_GOES_ON = (
    "what was asked for goes on in the service; the same command waits for it again, and without"
    " --to it shows how far it is"
)
#: What is said, after some seconds, where nobody carries it out.
_NOBODY = "no supervisor of the service runs: it goes on when one is started"
_WAITS = f"{_NOBODY} (Ctrl-C, or --no-wait, ends the command and not the change)"
_MOST_SHARDS = int(FIELDS["shards"].metadata["high"])


@click.command(
    cls=SettingsCommand,
    left=_GOES_ON,
    epilog=example(
        "qworker reshard --app handlers --to 16",
        "qworker reshard --app handlers --to 16 --no-wait    # the service goes on by itself",
        "qworker reshard --app handlers                      # how far is it?",
    ),
)
@settings_options(*SETTINGS, "handlers")
@service_option
@click.option(
    "--to",
    "shards",
    type=WholeNumber(1, _MOST_SHARDS),
    metavar="M",
    help="How many shards there shall be. Without it, show how far a change is, and end.",
)
@click.option("--no-wait", is_flag=True, help="Ask for it, show how far it is, and end.")
@json_option
def reshard(
    options: dict[str, Any],
    *,
    service: str | None,
    shards: int | None,
    no_wait: bool,
    as_json: bool,
) -> int:
    """Change the number of shards while publishers publish: nothing is lost or reordered.

    The supervisors of the service carry it out; this command asks for it and shows how it goes.
    Interrupted, it goes on all the same: given again, the command waits for it again. Members that
    die are replaced by others. Afterwards --shards, where it is set, has to be the new number.

    The last step, the removal of the old queues, waits until retries that wait in the broker have
    returned; the new ones are consumed meanwhile.

    As long as the new queues are being declared the change can be called off, by --to the number of
    shards that there is: where the broker has such a queue already, declared otherwise, it would
    never end.

    Exit codes: 0 done, or asked for; 1 somebody else has called it off, or asked for another number
    since; 2 wrong usage, a service that never ran, or another change under way; 3 the app or its
    settings are wrong, or the leases are in the memory of another process; 4 the lease store is not
    reachable.
    """
    place = target(options, service)
    with leasing(place) as leases:
        before = leases.reshard(lambda known: _changed(leases.service, known, shards))
        former = None if before is None or shards is None else before.target
        if former is not None and former.shards != shards:
            note(_called_off(leases.service, former, place.settings.broker))
        if shards is not None and not no_wait:
            _watch(leases, quiet=as_json)
        known = leases.look()
        _tell(leases.service, known, as_json=as_json)
    if shards is None:
        return 0
    if known.plan is not None and shards not in known.plan.shards:
        note(
            f"qworker: that is not {count(shards, 'shard')}: somebody has called the change off"
            " since, or asked for another number"
        )
        return _EXIT_OTHERWISE
    if before is not None and before.current.shards != shards:
        note(f"--shards (QWORKER_SHARDS), where it is set, has to be {shards} at the next start")
    return 0


def _tell(service: str, known: Known, *, as_json: bool) -> None:
    """Tell how many shards there are, or how far a change is that nobody waits for."""
    facts = overview(service, known, None, time())
    if as_json:
        told = {name: facts[name] for name in ("service", "generation", "reshard")}
        emit_json({**told, "shards": len(facts["shards"])})
    elif facts["reshard"] is not None:
        emit(progress(facts["reshard"]))
        if not _runs(facts):
            note(_NOBODY)
    elif known.plan is not None:
        current = known.plan.current
        emit(f"{service} has {current.counted}, generation {current.number}")


def _called_off(service: str, target: Generation, broker: str) -> str:
    queues, number = front_exchange(service, target.number), count(target.shards, "shard")
    rest = f"remove {queues} and {queues}.* from the broker, where they are empty"
    if capabilities_of(broker).embedded:  # no command removes them, and they are a few rows
        rest = f"let {queues} and {queues}.* be"
    return (
        f"the change to {number} is called off. What was declared for it gets no messages and is in"
        f" nobody's way: {rest}"
    )


def _runs(facts: Mapping[str, Any]) -> bool:
    """Tell whether a member of the service gives signs of life."""
    return any(not member["silent_for"] for member in facts["members"])


def _changed(service: str, known: Known, shards: int | None) -> Plan:
    if known.plan is None:
        number = f" with --shards {shards}" if shards else ""
        raise UsageError(f"{never_ran(service, known.where)}: start it{number}")
    return known.plan if shards is None else known.plan.reshard(shards)


def _watch(leases: Leasing, *, quiet: bool) -> None:
    """Show what is done, until it is; where ``quiet``, show only what keeps it from going on."""
    shown, seen = "", monotonic()
    while True:
        text = trouble = ""
        try:
            known = leases.look()
        except LeasesUnavailable as error:
            seen, trouble = monotonic(), f"the lease store is away: {error}"
        else:
            if known.plan is None or known.plan.target is None:
                return
            facts = overview(leases.service, known, None, time())
            if _runs(facts):
                seen = monotonic()
            text = progress(facts["reshard"])
        if monotonic() - seen > _LONELY:
            trouble = _WAITS
        told = trouble or ("" if quiet else text)
        if told != shown and told:
            note(told)
        shown = told
        sleep(_LOOK)
