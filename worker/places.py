"""Where a letter goes back to: to the shard that has its key now.

A letter names the queue that it came from, such as ``bank.g1.3``. After a change of the number of
shards that queue is gone, or is about to go. So the plan of the service, in the lease store, is
asked: where the letter's generation is the published one still, the letter returns to its own
queue; else to the queue that has its key in the published generation.

The plan may move while letters are on their way. What was confirmed by a queue while its
generation was still the published one is in front of the marker that ends that queue, so it is
consumed, and before anything of the next generation is. Whoever sends therefore looks again after
the confirms (:meth:`Places.moved`), before anything is removed from where it lay; and where the
plan went on meanwhile sends once more, to the new place: the second copies are duplicates.

What has an order goes nowhere while the published generation is not consumed yet
(:meth:`Places.between`): what was sent before it may be in the old queues, and may be parked again.

A service without a plan, or with leases that only its own process knows, has one generation, and
letters go back to where they came from.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Self

from worker.aside import published_as
from worker.codec import Codec
from worker.intake import order_key
from worker.leases.base import LeaseOptions
from worker.leases.open import open_leases
from worker.message import Message
from worker.names import front_exchange
from worker.patience import patiently
from worker.sharding.generations import PLAN, Generation, Plan
from worker.topology import queue_of_key, queue_prefix, relay_queue, shard_queue
from worker.transport.capabilities import capabilities_of

if TYPE_CHECKING:
    from worker.app import App
    from worker.config import Settings
    from worker.deadletters import Letter
    from worker.leases.base import LeaseStore

#: An exchange and a routing key.
Place = tuple[str, str]

_QUEUE = re.compile(r"(?P<group>.+)\.g(?P<generation>[1-9][0-9]*)\.(?:[0-9]+|relay)")


class Places:
    """The places of one service's letters. A context manager, for one thread.

    Without the ``app``, which may find a key in the payload, a letter's key is what it says itself.
    Opens the lease store: raises ConfigurationError and, here and in each method, LeasesUnavailable
    and StoreCorrupt.
    """

    def __init__(self, service: str, settings: Settings, app: App | None = None) -> None:
        self._service = service
        self._app = app
        self._codec = Codec.of(service, settings)
        self._spreads_keys = capabilities_of(settings.broker).spreads_keys
        self._own = queue_prefix(service, settings.handlers)
        self._patience = settings.connect_timeout
        #: The plans that were asked for, by what the queues are named after.
        self._plans: dict[str, Plan | None] = {}
        self._leases: LeaseStore | None = None
        if url := settings.leases_url:
            options = LeaseOptions(settings.lease_ttl, settings.dedup_timeout)
            self._leases = patiently(lambda: open_leases(url, options), self._patience)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the lease store."""
        if self._leases is not None:
            self._leases.close()

    def of(self, letter: Letter) -> Place:
        """Return the place of ``letter``, which came from some queue."""
        queue = letter.queue
        found = _QUEUE.fullmatch(queue)
        if found is None or not self._is_ours(found["group"]):
            return "", queue
        plan = self._plan(found["group"])
        if plan is None or plan.published.number == int(found["generation"]):
            return "", queue
        return "", self._queue_of(found["group"], plan.published, self._key(letter))

    def of_key(self, key: str) -> Place:
        """Return the place of a message of ``key`` that came from nowhere."""
        plan = self._plan(self._own)
        if plan is None:
            return front_exchange(self._service), ""
        return "", self._queue_of(self._own, plan.published, key)

    def of_event(self, order: str, *, keyed: bool) -> Place:
        """Return the place of an event that came from nowhere; ``order`` is its key, or its id.

        ``keyed``: it says so itself. Else the service may find a key in it, as it does with what
        comes to its relay queue, where it has one.
        """
        plan = self._plan(self._own)
        if plan is None:
            return front_exchange(self._service), ""
        generation = plan.published
        if not (keyed or self._spreads_keys) and generation.shards > 1:
            return "", relay_queue(self._own, generation.number)
        return "", self._queue_of(self._own, generation, order)

    @property
    def plan(self) -> Plan | None:
        """The plan of the service, as it was asked for last."""
        return self._plan(self._own)

    @property
    def between(self) -> bool:
        """Whether one of the services asked for consumes another generation than is published."""
        plans = [plan for plan in self._plans.values() if plan is not None]
        return any(plan.consumed != plan.published for plan in plans)

    def moved(self) -> bool:
        """Ask for the plans again; tell whether another generation is published now."""
        before, self._plans = self._plans, {}
        published = {group: _published(self._plan(group)) for group in before}
        return published != {group: _published(plan) for group, plan in before.items()}

    def _is_ours(self, group: str) -> bool:
        return group == self._service or group.startswith(queue_prefix(self._service, ("",)))

    def _plan(self, group: str) -> Plan | None:
        if group not in self._plans:
            self._plans[group] = self._ask(group)
        return self._plans[group]

    def _ask(self, group: str) -> Plan | None:
        leases = self._leases
        if leases is None:
            return None
        document = patiently(lambda: leases.look(group), self._patience).documents.get(PLAN)
        return None if document is None else Plan.load(document.text)

    def _queue_of(self, group: str, generation: Generation, key: str) -> str:
        queues = _queues(group, generation)
        return queue_of_key(queues, key, spreads_keys=self._spreads_keys)

    def _key(self, letter: Letter) -> str:
        """Return what decides which shard has a letter, as the shard finds it."""
        if letter.key is None and self._app is not None:
            arrival = letter.arrival
            name = published_as(arrival)
            message = self._codec.decode(bytes(arrival.body), arrival.properties, name)
            if isinstance(message, Message):
                return order_key(self._app, message)
        return letter.key or letter.id


def _published(plan: Plan | None) -> Generation | None:
    return None if plan is None else plan.published


@lru_cache(maxsize=16)
def _queues(group: str, generation: Generation) -> tuple[str, ...]:
    return tuple(shard_queue(group, generation.number, n) for n in range(generation.shards))
