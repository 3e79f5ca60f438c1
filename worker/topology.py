"""What a service declares on the broker: exchanges, queues and bindings, as data.

::

    qw.events (topic) ──pattern──┐
    qw.commands (direct) ──name──┼─> NAME.g1 ──slot of the key──> NAME.g1.0 … NAME.g1.N-1
    your own exchanges ──────────┘      └─no slot─> NAME.g1.relay
                                     NAME.dlq   NAME.parked   NAME.retry.MS

Publishers know the two public exchanges and nothing of shards. The service's own exchange, its
front, spreads by the slot of the key (``sharding/slots.py``), which our publishers name in the AMQP
header ``BCC``: brokers take that as one more routing key, and take it off. What comes without one
(a foreign publisher's messages) waits in the relay queue, whose one consumer finds the key and
passes it on, in order. The embedded brokers need neither: they spread by the header ``qw-key``, or
the message id, on a ring of their own.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from worker.message import KEY_HEADER
from worker.names import front_exchange
from worker.sharding.ring import Ring
from worker.sharding.slots import shard_of, slots_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from worker.config import Settings
    from worker.sources import Source
    from worker.transport.capabilities import Capabilities

_HASH = "x-consistent-hash"
_HASH_WEIGHT = "10"  # points on the plugin's ring a queue; more of them balance better
#: Deliveries of a message that a quorum queue allows before it sets it aside by itself. Our own
#: durable counts decide; restarts alone must never reach it.
_DELIVERY_LIMIT = 1_000_000
#: Waits of the retry queues in milliseconds; a delay takes the longest that does not exceed it.
RETRY_STEPS = tuple(1000 * 2**n for n in range(13))
RETRY_SECONDS = tuple(step / 1000 for step in RETRY_STEPS)


@dataclass(frozen=True, slots=True)
class Binding:
    """A source of messages beside the two public exchanges."""

    exchange: str
    type: str
    routing_key: str
    arguments: Mapping[str, Any]
    durable: bool = True
    auto_delete: bool = False
    exchange_arguments: Mapping[str, Any] = field(default_factory=dict)
    #: False: the exchange is somebody else's, and has to be there.
    declare: bool = True
    #: The exchange that it is bound to instead of the service.
    to: str = ""


@dataclass(frozen=True, slots=True)
class Exchange:
    """An exchange to declare."""

    name: str
    type: str
    durable: bool = True
    arguments: Mapping[str, Any] = field(default_factory=dict)
    #: Over how many shards it spreads a service's messages; 0 where it is none of a service.
    shards: int = 0
    auto_delete: bool = False
    #: It is somebody else's: it is not declared, and has to be there.
    foreign: bool = False


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue to declare."""

    name: str
    arguments: Mapping[str, Any]
    #: Which shard it is; None for the queues beside.
    shard: int | None = None


@dataclass(frozen=True, slots=True)
class Bind:
    """A binding to make, from an exchange to an exchange or a queue; or one for each slot."""

    source: str
    target: str
    routing_key: str
    to_queue: bool
    arguments: Mapping[str, Any] = field(default_factory=dict)
    #: Where not empty, there is a binding for the routing key of each of these slots instead.
    slots: range = range(0)


@dataclass(frozen=True)
class Topology:
    """All that a service declares, in an order in which it can be declared."""

    service: str
    generation: int
    exchanges: tuple[Exchange, ...]
    queues: tuple[Queue, ...]
    binds: tuple[Bind, ...]
    events_exchange: str
    commands_exchange: str
    #: The queue of what comes without a slot; empty where there is none.
    relay: str = ""
    sources: tuple[Source, ...] = ()

    @property
    def entry(self) -> str:
        """The name of the exchange by which messages of sources reach the shards."""
        return f"{self.service}.source"

    def queue_of(self, shard: int) -> str:
        """Return the name of a shard's queue."""
        return shard_queue(self.service, self.generation, shard)

    @property
    def front(self) -> str:
        """The name of the exchange that spreads the service's messages."""
        return front_exchange(self.service, self.generation)

    @property
    def all_bound(self) -> str:
        """The name of the exchange whose being there tells that all slots are bound.

        It goes with the front, as it deletes itself with the binding that it has to it.
        """
        return f"{self.front}.slots.{len(self.shard_queues)}"

    def without_front(self) -> Topology:
        """Return what is left where nothing shall come to this generation by its exchange."""
        own = {exchange.name for exchange in self.exchanges if exchange.shards}
        return replace(
            self,
            exchanges=tuple(each for each in self.exchanges if each.name not in own),
            binds=tuple(b for b in self.binds if b.source not in own and b.target not in own),
        )

    def unbound(self) -> Topology:
        """Return this without the bindings that let messages in."""
        binds = tuple(bind for bind in self.binds if bind.target != self.front)
        return replace(self, binds=binds)

    @cached_property
    def shard_queues(self) -> tuple[str, ...]:
        """The names of the shard queues, in the order of their numbers."""
        return tuple(q.name for q in self.queues if q.shard is not None)

    @cached_property
    def exchange_names(self) -> tuple[str, ...]:
        """The names of what is there, or tells what is, once all of it is declared.

        An exchange of somebody else is none of it: to declare anew brings it not back.
        """
        names = tuple(each.name for each in self.exchanges if not each.foreign)
        return (*names, self.all_bound) if any(bind.slots for bind in self.binds) else names

    @cached_property
    def foreign(self) -> tuple[str, ...]:
        """The names of the exchanges that are somebody else's."""
        return tuple(each.name for each in self.exchanges if each.foreign)

    @cached_property
    def _spreads_keys(self) -> bool:
        return any(each.shards and each.type == _HASH for each in self.exchanges)

    def queue_for(self, key: str) -> str:
        """Return the name of the queue that has ``key``; of a message without one, its id."""
        return queue_of_key(self.shard_queues, key, spreads_keys=self._spreads_keys)


def shard_queue(service: str, generation: int, shard: int) -> str:
    """Return the name of a shard's queue."""
    return f"{service}.g{generation}.{shard}"


def queue_of_key(queues: tuple[str, ...], key: str, *, spreads_keys: bool) -> str:
    """Return which of a generation's shard queues has ``key``; of a message without one, its id.

    ``spreads_keys`` is what the broker can do by itself (:class:`Capabilities`).
    """
    if spreads_keys and len(queues) > 1:
        return _ring(queues).lookup(key)
    return queues[shard_of(key, len(queues))]


@lru_cache(maxsize=16)
def _ring(queues: tuple[str, ...]) -> Ring:
    """Return the ring that an embedded broker makes of its bindings."""
    return Ring(dict.fromkeys(queues, int(_HASH_WEIGHT)))


def relay_queue(service: str, generation: int) -> str:
    """Return the name of the queue of messages that no publisher gave a slot."""
    return f"{service}.g{generation}.relay"


def dead_letter_queue(service: str) -> str:
    """Return the name of the queue of dead letters."""
    return f"{service}.dlq"


def parked_queue(service: str) -> str:
    """Return the name of the queue of parked messages."""
    return f"{service}.parked"


def retry_queue(service: str, delay: float) -> str:
    """Return the name of the retry queue whose wait is nearest below ``delay`` seconds."""
    wait = max((ms for ms in RETRY_STEPS if ms <= delay * 1000), default=RETRY_STEPS[0])
    return f"{service}.retry.{wait}"


def queue_prefix(service: str, handlers: tuple[str, ...]) -> str:
    """Return what a service's queues are named after.

    A process that runs only some handlers has queues of its own: acknowledging a message
    from the common queue would take it from the handlers that it does not run.
    """
    return f"{service}.only.{'+'.join(sorted(handlers))}" if handlers else service


def public_exchanges(settings: Settings) -> list[Exchange]:
    """Return the two exchanges that publishers know."""
    return [
        Exchange(settings.events_exchange, "topic"),
        Exchange(settings.commands_exchange, "direct"),
    ]


def lay_out(  # noqa: PLR0913 - what a topology follows from
    service: str,
    patterns: Iterable[tuple[str, bool]],
    bindings: Iterable[Binding],
    settings: Settings,
    *,
    able: Capabilities,
    generation: int = 1,
    sources: Iterable[Source] = (),
) -> Topology:
    """Return what ``service`` declares. ``patterns`` are (name or pattern, is a command)."""
    prefix = queue_prefix(service, settings.handlers)
    durable = _queue_arguments(settings, able, single_active=False)
    events, commands = settings.events_exchange, settings.commands_exchange
    front = front_exchange(prefix, generation)
    exchanges = public_exchanges(settings)
    shards = settings.first_shards
    exchanges.extend(_own_exchanges(front, shards, able))
    queues = [
        Queue(
            shard_queue(prefix, generation, shard),
            _queue_arguments(settings, able, single_active=True),
            shard,
        )
        for shard in range(shards)
    ]
    binds = _shard_binds(front, [queue.name for queue in queues], able)
    relay = ""
    if shards > 1 and not able.spreads_keys:
        relay = relay_queue(prefix, generation)
        queues.append(Queue(relay, _queue_arguments(settings, able, single_active=True)))
        binds.append(Bind(_without_slot(front, shards), relay, "", to_queue=True))
    queues += [Queue(dead_letter_queue(service), durable), Queue(parked_queue(service), durable)]
    has_command = False
    for pattern, is_command in patterns:
        has_command = has_command or is_command
        if not is_command:
            binds.append(Bind(events, front, pattern, to_queue=False))
    if has_command:
        binds.append(Bind(commands, front, service, to_queue=False))
    for each in bindings:
        shards_behind = 0
        facts = each.durable, each.exchange_arguments, shards_behind, each.auto_delete
        exchanges.append(Exchange(each.exchange, each.type, *facts, foreign=not each.declare))
        target = each.to or front
        binds.append(Bind(each.exchange, target, each.routing_key, False, each.arguments))
    unique: dict[str, Exchange] = {}
    for exchange in exchanges:
        unique.setdefault(exchange.name, exchange)
    kind = settings.queue_type if able.has_queue_types else ""
    topology = Topology(
        prefix,
        generation,
        tuple(unique.values()),
        tuple(queues),
        tuple(binds),
        events,
        commands,
        relay,
        tuple(s.with_type(kind) for s in sources if s.is_stream or not settings.handlers),
    )
    return _with_entry(topology) if topology.sources else topology


def _with_entry(topology: Topology) -> Topology:
    """Return ``topology`` with the way of what comes from its sources.

    They come as if their publishers had sent them to the service alone: so a change of the number
    of shards leads them to the new ones as it does all others.
    """
    return replace(
        topology,
        exchanges=(*topology.exchanges, Exchange(topology.entry, "fanout")),
        binds=(*topology.binds, Bind(topology.entry, topology.front, "", to_queue=False)),
    )


def lay_out_retries(service: str, delay: float, settings: Settings, able: Capabilities) -> Queue:
    """Return the retry queue for ``delay``: what waits there returns to the queue it came from.

    Messages are put into it through an exchange of its own with the origin queue as the routing
    key, which they keep when they expire into the default exchange. So a retry returns to one
    queue and never to an exchange that would copy it to every other.

    RabbitMQ lets go of an expired message only when the other queue has it: the strategy
    at-least-once, which quorum queues have. By default it drops what expires while that queue is
    not there, as at a restart (tried on 3.10: 207 of 602 lost).
    """
    name = retry_queue(service, delay)
    arguments = dict(_queue_arguments(settings, able, single_active=False))
    if arguments.get("x-queue-type") == "quorum":
        arguments["x-dead-letter-strategy"] = "at-least-once"
        arguments["x-overflow"] = "reject-publish"
    arguments["x-message-ttl"] = int(name.rsplit(".", 1)[1])
    arguments["x-dead-letter-exchange"] = ""
    return Queue(name, arguments)


def _own_exchanges(front: str, shards: int, able: Capabilities) -> list[Exchange]:
    """Return the exchanges that spread over the shards, the front of them first.

    Their number is part of the front's properties, which brokers compare when it is declared again
    (RabbitMQ: the type and the alternate exchange). So a service that comes back with another
    number is refused; otherwise some shards would keep messages that nobody consumes, and keys
    would change to shards that know nothing of their past.
    """
    if shards == 1:
        return [Exchange(front, "fanout", shards=1)]
    if able.spreads_keys:
        arguments = {"hash-header": KEY_HEADER, "hash-fallback": "message_id", "shards": shards}
        return [Exchange(front, _HASH, arguments=arguments, shards=shards)]
    rest = _without_slot(front, shards)
    # Not a direct exchange: one that gets two routing keys, the name and the slot, looks through
    # all of its bindings (RabbitMQ 3.10: 4,500 messages a second, and 20,000 by a topic exchange).
    return [
        Exchange(front, "topic", arguments={"alternate-exchange": rest}, shards=shards),
        Exchange(rest, "fanout"),
    ]


def _without_slot(front: str, shards: int) -> str:
    """Return the name of the exchange for what the front finds no slot in."""
    return f"{front}.relay.{shards}"


def _shard_binds(front: str, queues: list[str], able: Capabilities) -> list[Bind]:
    """Return the bindings of the shards.

    They come before those that let messages in: a key whose slot is not bound yet would go round
    by the relay, and what is published next would be there first.
    """
    if len(queues) == 1:
        return [Bind(front, queues[0], "", to_queue=True)]
    if able.spreads_keys:
        return [Bind(front, queue, _HASH_WEIGHT, to_queue=True) for queue in queues]
    return [
        Bind(front, queue, "", to_queue=True, slots=slots_of(shard, len(queues)))
        for shard, queue in enumerate(queues)
    ]


def _queue_arguments(
    settings: Settings, able: Capabilities, *, single_active: bool
) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    if single_active:
        arguments["x-single-active-consumer"] = True
    if able.has_queue_types:
        arguments["x-queue-type"] = settings.queue_type
        if settings.queue_type == "quorum":
            arguments["x-delivery-limit"] = _DELIVERY_LIMIT
    if settings.max_priority:
        arguments["x-max-priority"] = settings.max_priority
    return arguments
