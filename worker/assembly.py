"""Builds a consumer out of its parts: who knows whom is to be read here."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from worker.codec import Codec
from worker.dedup.open import open_settled
from worker.detour import Detour
from worker.dialogue import Dialogue
from worker.dispatch import Dispatcher
from worker.errors import ConfigurationError, LeasesUnavailable
from worker.executor import Executor
from worker.fate import Fate
from worker.gather import Gatherer
from worker.intake import Intake
from worker.inventory import Inventory
from worker.link import Link
from worker.parking import Parking
from worker.patience import patiently
from worker.relay import Relay
from worker.resharding import declared_by, topology_of
from worker.sources import left_out
from worker.sourcing import Sourcing
from worker.tenure import Tenure

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from worker.app import App
    from worker.config import Settings
    from worker.dedup.base import DedupStore
    from worker.errors import BrokerUnreachable
    from worker.pool import PoolMaker
    from worker.sharding.generations import Plan
    from worker.task import Delivery
    from worker.telemetry import Counters
    from worker.timers import Timers
    from worker.topology import Topology

logger = logging.getLogger("worker")


def check_store(app: App, store: DedupStore) -> bool:
    """Tell whether handlers of ``app`` judge by revisions; ``store`` must keep them then.

    Raises ConfigurationError where it does not.
    """
    names = [handler.full_name for handler in app.handlers.values() if handler.revisions]
    if names and not getattr(store, "keeps_revisions", False):
        raise ConfigurationError(
            f"{', '.join(names)}: revision= needs a dedup store that keeps revisions, and this one"
            f" does not ({store.tier}); use redis://, postgresql://, sqlite:/// or memory://. (On"
            " PostgreSQL it is the table qworker_dedup_revisions that is missing, and that its user"
            " may not make.)"
        )
    return bool(names)


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of one consumer. All belong to its I/O thread; the executor runs in the pools."""

    gatherer: Gatherer
    executor: Executor
    dialogue: Dialogue
    link: Link
    detour: Detour
    dispatcher: Dispatcher
    fate: Fate
    tenure: Tenure


def open_dedup(settings: Settings) -> DedupStore:
    """Open the dedup store, and say in the log what makes it weak.

    Raises DedupUnavailable where it does not answer in time, ConfigurationError where something
    is set wrong, or the store would forget by itself.
    """
    store = patiently(lambda: open_settled(settings), settings.connect_timeout)
    for warning in store.warnings():
        logger.warning("%s", warning)
    return store


def sourcing_of(
    app: App, settings: Settings, store: DedupStore, topology: Topology
) -> Sourcing | None:
    """Return what consumes the sources of the app; None where there is none to consume."""
    for told in left_out(app.sources, topology.sources):
        logger.warning("%s", told)
    if not topology.sources:
        return None
    streams = [source.name for source in topology.sources if source.is_stream]
    if streams and not getattr(store, "keeps_revisions", False):
        raise ConfigurationError(
            f"the sources {', '.join(streams)}: how far a stream was read is kept as a revision is,"
            f" and this dedup store keeps none ({store.tier}); use redis://, postgresql:// or"
            " sqlite:///"
        )
    return Sourcing(topology.service, topology.sources, store, settings.revision_retention)


def assemble(  # noqa: PLR0913 - what a consumer is made of
    app: App,
    settings: Settings,
    *,
    plan: Plan,
    trusted_until: float,
    owner: bytes,
    store: DedupStore,
    state: Any,
    timers: Timers,
    counters: Counters,
    clock: Callable[[], float],
    random: Random,
    pools: tuple[PoolMaker, PoolMaker],
    settled: Callable[[Delivery], None],
    wake: Callable[[], None],
    given: Callable[[list[int]], None],
    lost: Callable[[BrokerUnreachable], None],
) -> Parts:
    """Build the parts, and connect them where that is still trusted once the broker answers.

    Raises Unreachable where a server does not answer, ConfigurationError where something is set
    wrong.
    """
    telemetry = app.telemetry
    codec = Codec.of(app.name, settings)
    executor = Executor(app, codec, state, random, clock)
    has_revisions = check_store(app, store)
    dialogue = Dialogue(
        store, owner, settings.claim_ttl, telemetry, clock, has_revisions=has_revisions
    )
    parking = Parking(store, app.name)
    parking.load()
    link = Link(
        settings,
        topology=topology_of(app, settings, plan.consumed),
        service=app.name,
        telemetry=telemetry,
        random=random,
    )
    link.declared = declared_by(app, settings, plan)
    link.sourcing = sourcing_of(app, settings, store, link.topology)
    executor.trusted_until = trusted_until
    link.may_declare = lambda: executor.is_trusted(clock())
    if link.sourcing is not None:
        link.sourcing.may_consume = link.may_declare

    def connect() -> None:
        with suppress(LeasesUnavailable):  # the tick connects, once it is trusted again
            link.open()

    patiently(connect, settings.connect_timeout)
    keeps_routing_keys = settings.name_from == "routing-key"
    relay = Relay(
        service=app.name,
        keeps_routing_keys=keeps_routing_keys,
        link=link,
        telemetry=telemetry,
        settled=settled,
    )
    detour = Detour(
        service=app.name,
        keeps_routing_keys=keeps_routing_keys,
        link=link,
        dialogue=dialogue,
        parking=parking,
        telemetry=telemetry,
        counters=counters,
        settled=settled,
        later=timers.later,
    )
    dispatcher = Dispatcher(
        settings=settings,
        executor=executor,
        dialogue=dialogue,
        detour=detour,
        parking=parking,
        timers=timers,
        telemetry=telemetry,
        counters=counters,
        settled=settled,
        wake=wake,
        kinds={handler.is_async for handler in app.handlers.values()},
        pools=pools,
    )
    gatherer = Gatherer(
        link=link,
        intake=Intake(app, codec),
        dispatcher=dispatcher,
        detour=detour,
        relay=relay,
        parking=parking,
        inventory=Inventory(app.name, settings, link, wake),
        timers=timers,
        counters=counters,
        settled=settled,
    )
    tenure = Tenure(
        link=link,
        gatherer=gatherer,
        executor=executor,
        dispatcher=dispatcher,
        dialogue=dialogue,
        detour=detour,
        parking=parking,
        telemetry=telemetry,
        clock=clock,
        given=given,
        lost=lost,
        app=app,
        settings=settings,
    )
    fate = Fate(
        executor=executor,
        dispatcher=dispatcher,
        dialogue=dialogue,
        detour=detour,
        parking=parking,
        link=link,
        telemetry=telemetry,
        counters=counters,
        clock=clock,
        has_lost=tenure.has_lost,
    )
    return Parts(gatherer, executor, dialogue, link, detour, dispatcher, fate, tenure)
