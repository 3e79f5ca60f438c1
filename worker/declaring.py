"""Declares on the broker what ``topology`` says. Idempotent, and done again at each connection."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import amqp.exceptions

from worker.errors import ConfigurationError, DeclarationMismatch
from worker.sharding.slots import slot_routing_key

if TYPE_CHECKING:
    from collections.abc import Iterable
    from contextlib import AbstractContextManager

    from kombu.connection import Connection

    from worker.sources import Source
    from worker.topology import Bind, Exchange, Queue, Topology

#: The types of exchanges that every broker has, and an exchange that is always there.
PLAIN_TYPES = ("direct", "fanout", "headers", "topic")
_ALWAYS_THERE = "amq.direct"


def declare(channel: Any, topology: Topology, *, thoroughly: bool = False) -> list[str]:
    """Declare everything; return the names of what is somebody else's and not there. Idempotent.

    That all slots are bound is told by an exchange: many processes that bind the same thousand
    slots at a time, after a restart of the broker say, keep it busy for half a minute (tried on
    RabbitMQ 3.10). ``thoroughly`` binds them nevertheless, in case that somebody removed a queue.
    Raises DeclarationMismatch where the broker has something with other properties.
    """
    with _together(channel):
        _declare(channel, topology, thoroughly=thoroughly)
        return bind_foreign(channel, topology)


def _together(channel: Any) -> AbstractContextManager[None]:
    """Make it one transaction where the broker has such.

    Whoever looks meanwhile, or after a crash, finds nothing of a new service, or all of it. So a
    publisher that waits for a service to be there does not send into half of one.
    """
    together = getattr(channel.connection, "together", None)
    return nullcontext() if together is None else together()


def _declare(channel: Any, topology: Topology, *, thoroughly: bool) -> None:
    for exchange in topology.exchanges:
        if not exchange.foreign:
            declare_exchange(channel, exchange)
    slots = [bind for bind in topology.binds if bind.slots]
    if slots and _lacks_one(channel, [bind.target for bind in slots]):
        # Its bindings are gone too. Whoever dies on the way has not said that all is bound.
        channel.exchange_delete(topology.all_bound)
    for queue in topology.queues:
        declare_queue(channel, queue)
    if slots:
        if thoroughly or not _exists(channel, topology.all_bound):
            _bind_slots(channel, slots)
            channel.exchange_declare(topology.all_bound, "fanout", durable=True, auto_delete=True)
        # Nothing is ever published there. Who died before this line left it to who comes next.
        channel.exchange_bind(topology.front, topology.all_bound)
    foreign = topology.foreign
    for bind in topology.binds:
        if bind.slots or bind.source in foreign or bind.target in foreign:
            continue
        _bind(channel, bind, topology)


def _bind(channel: Any, bind: Bind, topology: Topology) -> None:
    """Make a binding. Raises ConfigurationError where the app says what cannot be."""
    make = channel.queue_bind if bind.to_queue else channel.exchange_bind
    try:
        make(bind.target, bind.source, bind.routing_key, arguments=dict(bind.arguments))
    except (amqp.exceptions.PreconditionFailed, amqp.exceptions.NotFound) as error:
        own = {x.name for x in topology.exchanges} | {q.name for q in topology.queues}
        if isinstance(error, amqp.exceptions.NotFound) and bind.target in own:
            raise  # it was there a moment ago
        raise ConfigurationError(
            f"the broker does not bind {bind.target!r} to the exchange {bind.source!r}: {error};"
            f" look at app.bind(exchange={bind.source!r}, ...)"
        ) from None


def bind_foreign(channel: Any, topology: Topology) -> list[str]:
    """Bind the service to exchanges of somebody else; return the names of those that are missing.

    Idempotent; what cannot be bound without those is left out.
    """
    foreign = topology.foreign
    missing = [name for name in foreign if not _exists(channel, name)]
    for bind in topology.binds:
        ends = {bind.source, bind.target}
        if not ends.isdisjoint(foreign) and ends.isdisjoint(missing):
            channel.exchange_bind(
                bind.target, bind.source, bind.routing_key, arguments=dict(bind.arguments)
            )
    return missing


def _bind_slots(channel: Any, binds: Iterable[Bind]) -> None:
    """Make the bindings without waiting for an answer to each.

    What the broker refuses of them ends the channel, as the next declaration finds out.
    """
    for bind in binds:
        for slot in bind.slots:
            channel.queue_bind(bind.target, bind.source, slot_routing_key(slot), nowait=True)


def _lacks_one(channel: Any, queues: Iterable[str]) -> bool:
    own = channel.connection.channel()  # as below
    try:
        for queue in queues:
            own.queue_declare(queue, passive=True)
    except amqp.exceptions.NotFound:
        return True
    own.close()
    return False


def _exists(channel: Any, exchange: str) -> bool:
    own = channel.connection.channel()  # asking for what is not there ends a channel
    try:
        own.exchange_declare(exchange, "fanout", passive=True)
    except amqp.exceptions.NotFound:
        return False
    own.close()
    return True


def declare_exchange(channel: Any, exchange: Exchange) -> None:
    """Declare one exchange; or find it, where it is somebody else's."""
    if exchange.foreign:
        try:
            channel.exchange_declare(exchange.name, exchange.type, passive=True)
        except amqp.exceptions.NotFound:
            raise ConfigurationError(not_there([exchange.name])) from None
        return
    try:
        channel.exchange_declare(
            exchange.name,
            exchange.type,
            durable=exchange.durable,
            auto_delete=exchange.auto_delete,
            arguments=dict(exchange.arguments),
        )
    except amqp.exceptions.InvalidCommand as error:  # which ends the connection: no outage, though
        raise _unknown_type(exchange, error) from None
    except amqp.exceptions.PreconditionFailed as error:
        if exchange.shards and exchange.type == "topic" and "'type'" in str(error):
            raise ConfigurationError(
                f"the broker has {exchange.name!r} as an exchange of another type (which another"
                f" release of this program declared, perhaps): {error}. Stop what publishes, let"
                " the service work off its queues, stop it, and remove that exchange; the next"
                " start declares it anew"
            ) from None
        if exchange.shards:
            raise DeclarationMismatch(
                f"the broker has {exchange.name!r} with another number of shards than"
                f" {exchange.shards}: start with the number that it has, which 'qworker check'"
                " tells. To change their number, while the service runs: qworker reshard --to"
                f" {exchange.shards} ({error})"
            ) from None
        raise DeclarationMismatch(
            f"the broker has the exchange {exchange.name!r} with other properties: {error}; remove"
            " it there, or set the settings to what it is"
        ) from None


def check_type(channel: Any, exchange: Exchange) -> None:
    """Raise ConfigurationError where the broker has no exchanges of this type; declare nothing.

    Brokers look at the type of a declaration before anything else of it (RabbitMQ 3.10). So one of
    an exchange that is there, with another type, tells whether this one is known: as it is refused
    for being different, or for being that name. A type that is not known ends the connection.
    """
    with suppress(amqp.exceptions.PreconditionFailed, amqp.exceptions.AccessRefused):
        try:
            channel.exchange_declare(_ALWAYS_THERE, exchange.type, durable=True, auto_delete=False)
        except amqp.exceptions.InvalidCommand as error:
            raise _unknown_type(exchange, error) from None


def _unknown_type(exchange: Exchange, error: Exception) -> ConfigurationError:
    near = get_close_matches(exchange.type, PLAIN_TYPES, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "is its plugin enabled there?"
    return ConfigurationError(
        f"the broker does not know the type {exchange.type!r} of the exchange {exchange.name!r};"
        f" {hint} ({error})"
    )


def not_there(foreign: Iterable[str]) -> str:
    """Return in words that these exchanges of somebody else are missing."""
    lacking = "the exchange {!r}, which is bound with declare=False, is not there"
    return ", and ".join(map(lacking.format, foreign))


def declare_queue(channel: Any, queue: Queue) -> None:
    """Declare one queue."""
    try:
        channel.queue_declare(
            queue.name, durable=True, auto_delete=False, arguments=dict(queue.arguments)
        )
    except amqp.exceptions.PreconditionFailed as error:
        raise DeclarationMismatch(
            f"the broker has the queue {queue.name!r} with other properties: {error}; empty and"
            " remove it there, or set the settings (queue_type, max_priority) to what it is"
        ) from None


def declare_source(channel: Any, source: Source) -> int:
    """Declare a queue or a stream that messages are taken from; return how many consume it.

    One that is somebody else's is found, or not; an exclusive one belongs to the connection. Raises
    amqp ChannelError.
    """
    if source.declare is None:
        return int(channel.queue_declare(source.queue, passive=True).consumer_count)
    declared = channel.queue_declare(
        source.queue,
        durable=source.declare in {"durable", "stream"},
        exclusive=source.declare == "exclusive",
        # Else it would be locked for whoever gets the shard while this process goes on.
        auto_delete=source.declare == "exclusive",
        arguments=dict(source.queue_arguments),
    )
    if source.exchange:
        channel.queue_bind(
            source.queue, source.exchange, source.routing_key, arguments=dict(source.arguments)
        )
    return int(declared.consumer_count)


def declare_or_find(exchange: Exchange, connection: Connection) -> None:
    """Declare an exchange; a user who may only publish finds it there.

    RabbitMQ asks for no permission where a declaration is passive ("Access Control").
    """
    channel = connection.channel()
    try:
        declare_exchange(channel, exchange)
    except amqp.exceptions.AccessRefused as refusal:
        channel = connection.channel()  # a refusal ends a channel
        try:
            channel.exchange_declare(exchange.name, exchange.type, passive=True)
        except (amqp.exceptions.AccessRefused, amqp.exceptions.NotFound) as error:
            raise ConfigurationError(
                f"this user may not declare the exchange {exchange.name!r}, and it is not there:"
                f" start a service that has it, or let the user configure it ({refusal}; {error})"
            ) from None
    channel.close()


def is_untouched(queue: str, channel: Any) -> bool:
    """Tell whether nothing lies in a queue, and nobody consumes it."""
    counted = channel.queue_declare(queue, passive=True)
    return not (counted.message_count or counted.consumer_count)


def depth(queue: str, channel: Any) -> int:
    """Return how many messages wait in a queue."""
    return int(channel.queue_declare(queue, passive=True).message_count)
