"""``qworker reshard``: change the number of shards of a service, while it runs."""

from __future__ import annotations

from dataclasses import dataclass
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

import click

from worker.cli.loading import service_option, target
from worker.cli.options import SettingsCommand, example, json_option, settings_options
from worker.cli.output import count, emit, emit_json, note
from worker.config import FIELDS
from worker.errors import LeasesUnavailable, UsageError
from worker.leases.base import LeaseOptions
from worker.leases.open import open_leases
from worker.sharding.generations import PLAN, Phase, Plan
from worker.supervisor.facts import Facts
from worker.topology import queue_prefix

if TYPE_CHECKING:
    from worker.config import Settings
    from worker.leases.base import LeaseStore, View

_LOOK = 0.25
#: Seconds without a living member after which somebody is told that there is none.
_LONELY = 2.0
_MOST_SHARDS = int(FIELDS["shards"].metadata["high"])

_DOING = {
    Phase.DECLARE: "declaring the new queues",
    Phase.BIND: "binding them: what is published goes to both",
    Phase.SEAL: "sealing the old queues",
    Phase.DRAIN: "draining the old queues",
    Phase.REMOVE: "consuming the new queues; removing the old ones",
}


@click.command(
    cls=SettingsCommand,
    epilog=example(
        "qworker reshard --app handlers --to 16",
        "qworker reshard --app handlers --to 16 --no-wait    # the service goes on by itself",
    ),
)
@settings_options("app", "broker", "dedup", "leases", "handlers", "connect_timeout")
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
    aim = target(options, service)
    name = queue_prefix(aim.service, aim.settings.handlers)
    store = _open(aim.settings)
    try:
        change = _Change(store, name, shards, quiet=as_json)
        change.ask()
        if not no_wait:
            change.watch()
        view, plan = change.look()
    finally:
        store.close()
    if as_json:
        emit_json(_facts(name, plan, view))
    elif plan.target is None:
        emit(f"{name} has {count(plan.current.shards, 'shard')}, generation {plan.current.number}")
    return 0


def _open(settings: Settings) -> LeaseStore:
    options = LeaseOptions(settings.lease_ttl, settings.dedup_timeout)
    return open_leases(settings.leases_url, options)


@dataclass(slots=True)
class _Change:
    """The change of one service, as this command sees it."""

    store: LeaseStore
    service: str
    shards: int
    quiet: bool

    def look(self) -> tuple[View, Plan]:
        """Return what the members know. Raises UsageError for a service that never ran."""
        view = self.store.look(self.service)
        document = view.documents.get(PLAN)
        if document is None:
            raise UsageError(
                f"{self.service} was never started with this lease store: start it with"
                f" --shards {self.shards}"
            )
        return view, Plan.load(document.text)

    def ask(self) -> None:
        """Write the plan. Raises UsageError where another change is under way."""
        while True:
            view, plan = self.look()
            changed = plan.reshard(self.shards)
            version = view.documents[PLAN].version
            if changed == plan or self.store.write(self.service, PLAN, version, changed.dump()):
                return

    def watch(self) -> None:
        """Show what is done, until it is."""
        shown, seen = "", monotonic()
        while True:
            try:
                view, plan = self.look()
            except LeasesUnavailable as error:
                seen, text = monotonic(), f"the lease store is away: {error}"
            else:
                if plan.target is None:
                    return
                seen = monotonic() if view.members else seen
                text = _progress(view, plan)
            if monotonic() - seen > _LONELY:
                text = "no supervisor of the service runs: it goes on when one is started"
            if text != shown:
                self._tell(text)
                shown = text
            sleep(_LOOK)

    def _tell(self, text: str) -> None:
        if not self.quiet:
            note(text)


def _progress(view: View, plan: Plan) -> str:
    if plan.target is None or plan.phase is None:
        return ""
    told = f"{plan.current.shards} -> {plan.target.shards}: {_DOING[plan.phase]}"
    if plan.phase is Phase.DRAIN:
        drained = _drained(view) & {*plan.current.leases}
        told += f", {len(drained)} of {plan.current.shards} done"
    return told


def _drained(view: View) -> set[str]:
    return {name for facts in view.members.values() for name in Facts.load(facts).drained}


def _facts(service: str, plan: Plan, view: View) -> dict[str, Any]:
    return {
        "service": service,
        "shards": plan.current.shards,
        "generation": plan.current.number,
        "to": None if plan.target is None else plan.target.shards,
        "phase": None if plan.phase is None else plan.phase.value,
        "drained": sorted(_drained(view)),
        "members": len(view.members),
    }
