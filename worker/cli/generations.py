"""Which generations of its queues a service has, for commands that look at them."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING

from worker.errors import ConfigurationError
from worker.found import find_generations
from worker.leases.base import LeaseOptions
from worker.leases.open import open_leases
from worker.resharding import declared_by, topology_of
from worker.sharding.generations import PLAN, Generation, Plan
from worker.supervisor.course import is_free, other_mode, other_shards
from worker.topology import queue_prefix

if TYPE_CHECKING:
    from collections.abc import Sequence

    from worker.app import App
    from worker.config import Settings
    from worker.inspector import Inspector
    from worker.leases.base import LeaseStore, View
    from worker.sources import Source
    from worker.topology import Bind, Exchange, Queue, Topology


def open_lease_store(settings: Settings) -> LeaseStore:
    """Open the lease store. Raises ConfigurationError and LeasesUnavailable."""
    options = LeaseOptions(settings.lease_ttl, settings.dedup_timeout)
    return open_leases(settings.leases_url, options, settings.leases_origin)


def look_at(store: LeaseStore, app: App, settings: Settings) -> View:
    """Return what the store knows of the service. Raises LeasesUnavailable and StoreCorrupt."""
    return store.look(queue_prefix(app.name, settings.handlers))


def plan_in(view: View) -> Plan | None:
    """Return what the service has agreed upon; None where the store does not know it.

    Raises StoreCorrupt.
    """
    document = view.documents.get(PLAN)
    return None if document is None else Plan.load(document.text)


def known_plan(app: App, settings: Settings) -> Plan | None:
    """Return the plan that the lease store knows. Raises as all of the above do."""
    with closing(open_lease_store(settings)) as store:
        return plan_in(look_at(store, app, settings))


def find_plan(inspector: Inspector, app: App, settings: Settings) -> Plan | None:
    """Return the plan that follows from what the broker has; None where it has nothing.

    Raises BrokerUnreachable, and ConfigurationError where nothing follows.
    """
    found = find_generations(inspector, partial(topology_of, app, settings), settings.first_shards)
    return Plan.found(found, single_active=settings.single_active) if found else None


def first_plan(settings: Settings) -> Plan:
    """Return the plan that a service begins with."""
    return Plan(Generation(1, settings.first_shards), single_active=settings.single_active)


def check_shards(app: App, settings: Settings, plan: Plan) -> None:
    """Raise ConfigurationError where another number of shards is asked for than there is."""
    if settings.shards and settings.shards not in plan.shards:
        raise ConfigurationError(other_shards(app.name, settings.shards, plan))


def check_mode(app: App, settings: Settings, view: View, plan: Plan) -> None:
    """Raise ConfigurationError where the service runs in the other mode, of --single-active."""
    if plan.single_active != settings.single_active and not is_free(view):
        raise ConfigurationError(other_mode(app.name, there=plan.single_active))


class Declared:
    """What the processes of a service declare by their plan, each thing once."""

    def __init__(self, app: App, settings: Settings, plan: Plan) -> None:
        self.topologies: Sequence[Topology] = declared_by(app, settings, plan)
        self.service = self.topologies[0].service
        exchanges: dict[str, Exchange] = {}
        queues: dict[str, Queue] = {}
        binds: list[Bind] = []
        for topology in self.topologies:
            exchanges |= {each.name: each for each in topology.exchanges}
            queues |= {each.name: each for each in topology.queues}
            for bind in topology.binds:  # one of them may bind twice, for two handlers say
                if bind not in binds:
                    binds.append(bind)
        self.exchanges = [*exchanges.values()]
        self.queues = [*queues.values()]
        self.binds = binds

    @property
    def sources(self) -> Sequence[Source]:
        """What is passed on to the shards."""
        return self.topologies[-1].sources

    @property
    def relay(self) -> str:
        """The relay queue of what is published now; empty where there is none."""
        return self.topologies[-1].relay


def told(plan: Plan) -> str:
    """Return the generations of a plan in words."""
    if plan.target is None or plan.phase is None:
        return f"generation {plan.current.number}"
    return (
        f"on its way from generation {plan.current.number} with {plan.current.counted} to"
        f" {plan.target.number} with {plan.target.shards} ({plan.phase.value}); consumed is"
        f" {plan.consumed.number}, published {plan.published.number}"
    )
