"""Messages that came without a slot, on their way from the relay queue to the shards of their keys.

One process of the service consumes the relay queue at a time. It passes each message on with a
confirm, and only then is the delivery acknowledged.

Order: what one process passes on is in the order of the relay queue, and whoever consumes that
queue next begins at or before the first message that was not confirmed. So of two messages of a
key the first copy of the earlier one is in the queue of their shard before any copy of the later
one, however the copies of two processes mix; second copies are duplicates, which dedup drops.
Nothing here is sent a second time by itself, for it would be behind what was sent after it: where
one is refused, or the link is lost, all that is under way is forgotten, and comes again in order
with its deliveries. (What follows a refused message within the window of confirms may be in its
shard's queue already: a policy that lets these queues refuse messages costs their order.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from worker.aside import PREFIX, origin, published_as, redirect
from worker.parking import unpark_of
from worker.sharding.slots import slot_of, slot_routing_key
from worker.telemetry import PublishRefused

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.errors import PublishError
    from worker.link import Link
    from worker.message import Outgoing
    from worker.task import Delivery
    from worker.telemetry import Telemetry
    from worker.transport.arrival import Arrival


class Relay:
    """Passes messages on for one consumer. I/O thread only.

    ``settled`` says that a delivery needs nothing more.
    """

    def __init__(
        self,
        *,
        service: str,
        keeps_routing_keys: bool,
        link: Link,
        telemetry: Telemetry,
        settled: Callable[[Delivery], None],
    ) -> None:
        self._service = service
        self._keeps_routing_keys = keeps_routing_keys
        self._link = link
        self._telemetry = telemetry
        self._settled = settled

    def pass_on(self, delivery: Delivery, key: str) -> None:
        """Pass a message on to the shard of its ``key``; its delivery is settled then."""
        if delivery.channel.feed is not None:
            self._let_in(delivery, key)
            return
        message = redirect(
            delivery.arrival,
            delivery.message.id if delivery.message is not None else "",
            exchange="",
            routing_key=self._link.topology.queue_for(key),
            facts=self._facts(delivery.arrival),
            drop_prefix=PREFIX,
        )

        delivery.open_tasks = 1
        self._send(delivery, message)

    def _facts(self, arrival: Arrival) -> dict[str, str | int]:
        facts = origin(arrival) if self._keeps_routing_keys else {}
        unpark = unpark_of(arrival.properties, arrival.exchange, self._service)
        return facts if unpark is None else facts | unpark.facts

    def _let_in(self, delivery: Delivery, key: str) -> None:
        """Send on what came from a source, as a publisher that knows the slot of its key."""
        arrival = delivery.arrival
        message = redirect(
            arrival,
            delivery.message.id if delivery.message is not None else "",
            exchange=self._link.topology.entry,
            routing_key=published_as(arrival),
            facts={"BCC": [slot_routing_key(slot_of(key))]},
            drop_prefix=PREFIX,
        )
        delivery.open_tasks = 1
        self._send(delivery, message)

    def seal(self, delivery: Delivery) -> None:
        """Pass a marker on to every shard, behind all that was passed on before."""
        message_id = delivery.message.id if delivery.message is not None else ""
        queues = self._link.topology.shard_queues
        delivery.open_tasks = len(queues)
        for queue in queues:
            to = redirect(delivery.arrival, message_id, exchange="", routing_key=queue, facts={})
            self._send(delivery, to)

    def _send(self, delivery: Delivery, message: Outgoing) -> None:
        def then(error: PublishError | None) -> None:
            if error is None:
                self._settled(delivery)
            elif not delivery.channel.closed:
                to = message.routing_key
                self._telemetry.emit(PublishRefused(message.message_id, to, str(error)))
                self._link.renew(f"{to} did not take {message.message_id}: {error}")

        self._link.send(message, then, again=False)
