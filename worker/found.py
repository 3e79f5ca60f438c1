"""What a broker has of a service whose plan nobody remembers.

The plan of a service lives in its lease store. One that forgot it (a Redis that was flushed) would
begin again with the first generation, while messages lie in, and come to, the queues of another. So
whoever is first looks at the broker before a first plan is made; what that plan is then,
:meth:`worker.sharding.generations.Plan.found` tells.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from worker.declaring import declare_exchange
from worker.errors import ConfigurationError, DeclarationMismatch
from worker.sharding.generations import Generation
from worker.topology import shard_queue

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.inspector import Inspector
    from worker.topology import Topology

#: How many numbers in a row may belong to nothing that is there before no more is looked for. Each
#: was a change of the number of shards, or the calling off of one.
_GAP = 128


def find_generations(
    inspector: Inspector, topology_of: Callable[[Generation], Topology], shards: int
) -> list[Generation]:
    """Return the generations that are there, in their order. Nothing is declared.

    ``topology_of`` returns what a generation declares, ``shards`` are those that are asked for.
    Raises BrokerUnreachable; ConfigurationError where only a part of a generation is there.
    """
    prefix = topology_of(Generation(1, shards)).service
    found: list[Generation] = []
    number, last = 1, _GAP
    while number <= last:
        if inspector.depth(shard_queue(prefix, number, 0)) is not None:
            found.append(_count(inspector, topology_of, number, shards))
            last = number + _GAP
        number += 1
    return found


def _count(
    inspector: Inspector, topology_of: Callable[[Generation], Topology], number: int, shards: int
) -> Generation:
    """Return a generation with its number of shards.

    The properties of its front exchange tell them; of one that is sealed, which has none, the
    queues do.
    """
    asked = Generation(number, shards)
    if _fits(inspector, topology_of(asked)):
        return asked
    topology = topology_of(asked)
    counted = Generation(number, inspector.shards(topology.service, number))
    if not inspector.has_exchange(topology.front) or _fits(inspector, topology_of(counted)):
        return counted
    raise ConfigurationError(
        f"the broker has some of the shard queues of {topology.front!r} and not all, and the lease"
        " store does not know how many there should be: start with the number of --shards that it"
        f" was declared with. If that never came to its end, remove the exchange {topology.front}"
        f" and the queues {topology.front}.*, and start again"
    )


def _fits(inspector: Inspector, topology: Topology) -> bool:
    """Tell whether the front exchange is there, and is that of so many shards."""
    if not inspector.has_exchange(topology.front):
        return False
    (front,) = (each for each in topology.exchanges if each.name == topology.front)
    try:
        inspector.ask(lambda channel: declare_exchange(channel, front))  # which changes nothing
    except DeclarationMismatch:
        return False
    return True
