"""Messages that go elsewhere before their delivery is settled: step 6 of the tick.

Children of a handler, dead letters, parked messages and retries that leave the process are
published with a confirm first; only then is the task recorded, or the delivery acknowledged. A
crash in between publishes again: under the same id, so that whoever receives it drops the second.

A message that the broker refuses is tried again and again, with the delivery unacknowledged: it
is never dropped. A child that nobody would receive (a command whose recipient was never started)
is tried as often as the handler's retry policy says, then its parent is dead-lettered.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from worker.aside import HANDLER, ONLY, PREFIX, dead_letter_facts, origin, redirect, set_aside
from worker.errors import Unroutable
from worker.message import KEY_HEADER
from worker.outcome import DeadLetter
from worker.telemetry import DeadLettered, PublishRefused
from worker.topology import RETRY_STEPS, dead_letter_queue, parked_queue

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.dialogue import Dialogue
    from worker.errors import PublishError
    from worker.link import Link
    from worker.message import Message, Outgoing
    from worker.parking import Parking
    from worker.task import Delivery, Task
    from worker.telemetry import Counters, Telemetry
    from worker.transport.queuechannel import QueueChannel

_AGAIN = 1.0
_LONGEST_AGAIN = 30.0


class Detour:
    """Sends messages elsewhere for one consumer. I/O thread only.

    ``settled`` says that a task of a delivery needs nothing more; ``later(seconds, call)`` sets a
    timer. ``keeps_routing_keys`` says that routing keys tell what a message is, so that they must
    not be lost where it goes.
    """

    def __init__(  # noqa: PLR0913 - the parts of the consumer that it stands between
        self,
        *,
        service: str,
        keeps_routing_keys: bool,
        link: Link,
        dialogue: Dialogue,
        parking: Parking,
        telemetry: Telemetry,
        counters: Counters,
        settled: Callable[[Delivery], None],
        later: Callable[[float, Callable[[], None]], None],
    ) -> None:
        self._service = service
        self._keeps_routing_keys = keeps_routing_keys
        self._link = link
        self._dialogue = dialogue
        self._parking = parking
        self._telemetry = telemetry
        self._counters = counters
        self._settled = settled
        self._later = later
        #: Tasks and deliveries whose messages are on their way, in all and by shard.
        self.under_way = 0
        self.of_shard: Counter[int] = Counter()
        #: Parked messages that are confirmed and that the store does not know of; and whether it
        #: was told of them a moment ago, in vain.
        self._unsaved: list[Delivery] = []
        self._unheard = False

    def publish_children(
        self, task: Task, children: tuple[Outgoing, ...], resume: Callable[[], None]
    ) -> None:
        """Publish what the handler published; then record ``task`` as done.

        ``resume`` lets its successors go, and is called when the record is on its way: the store
        is told of it before it is asked for them.
        """
        channel = task.delivery.channel
        self._begin(channel)
        left = len(children)

        def confirmed() -> None:
            nonlocal left
            left -= 1
            self._counters.published += 1
            if left == 0:
                self._end(channel)
                self._dialogue.complete(task)
                resume()

        def give_up(child: Outgoing, error: PublishError) -> None:
            nonlocal left
            if left > 0:
                left = -1  # the other children change nothing any more
                self._end(channel)
                reason = f"what it published ({child.routing_key}) was not taken: {error}"
                self.dead_letter(task, DeadLetter(reason), resume)

        for child in children:
            self._send_child(task, child, 1, confirmed, give_up)

    def _send_child(
        self,
        task: Task,
        child: Outgoing,
        attempt: int,
        confirmed: Callable[[], None],
        give_up: Callable[[Outgoing, PublishError], None],
    ) -> None:
        def then(error: PublishError | None) -> None:
            if error is None:
                confirmed()
            elif attempt >= task.handler.retry.attempts:
                give_up(child, error)
            else:
                self._later(
                    _pause(attempt),
                    lambda: self._send_child(task, child, attempt + 1, confirmed, give_up),
                )

        self._link.send(child, then)

    def dead_letter(
        self,
        task: Task,
        fate: DeadLetter,
        resume: Callable[[], None] | None = None,
        *,
        record: bool = True,
    ) -> None:
        """Set the message of ``task`` aside; then record it as done, where ``record``.

        ``resume`` is as in :meth:`publish_children`.
        """
        delivery = task.delivery
        facts = dead_letter_facts(
            fate.reason,
            queue=delivery.channel.queue,
            handler=task.handler_name,
            attempts=task.attempt,
            record=task.record,
            key=_hidden_key(task.message),
            detail=fate.detail,
        ) | self._origin(delivery)
        letter = set_aside(
            delivery.arrival, task.message.id, dead_letter_queue(self._service), facts
        )

        def done() -> None:
            if record:
                task.effective = False  # whoever replays it wants all of it to happen
                self._dialogue.complete(task)
            else:
                self._settled(delivery)
            if resume is not None:
                resume()

        self._counters.dead_lettered += 1
        message = task.message
        self._telemetry.emit(
            DeadLettered(task.handler_name, message.id, fate.reason, message.name, message.key)
        )
        self._insist(letter, delivery.channel, done)

    def dead_letter_delivery(self, delivery: Delivery, fate: DeadLetter) -> None:
        """Set a message aside that reached no handler at all."""
        message = delivery.message
        message_id = message.id if message is not None else ""
        facts = dead_letter_facts(fate.reason, queue=delivery.channel.origin)
        facts |= self._origin(delivery)
        letter = set_aside(delivery.arrival, message_id, dead_letter_queue(self._service), facts)
        self._counters.dead_lettered += 1
        properties = delivery.arrival.properties
        named = message_id or str(properties.get("message_id") or "")
        name = message.name if message is not None else str(properties.get("type") or "")
        key = message.key if message is not None else None
        self._telemetry.emit(DeadLettered(None, named or None, fate.reason, name or None, key))
        delivery.open_tasks = 1
        self._insist(letter, delivery.channel, lambda: self._settled(delivery))

    def park(self, delivery: Delivery, reason: str = "", task: Task | None = None) -> None:
        """Set a message of a parked key aside, in order; settle one of its tasks then."""
        message = delivery.message
        assert message is not None  # noqa: S101 - only a decoded message has a key
        if delivery.parked:
            self._settled(delivery)
            return
        delivery.parked = True
        facts = dead_letter_facts(
            reason or "its key is parked: an earlier message of it could not be handled",
            queue=delivery.channel.queue,
            handler=task.handler_name if task is not None else "",
            attempts=task.attempt if task is not None else 0,
        )
        facts |= self._parking.facts(message) | self._origin(delivery)
        if (only := message.headers.get(HANDLER)) is not None:  # a dead letter that returned
            facts[ONLY] = str(only)
        letter = set_aside(delivery.arrival, message.id, parked_queue(self._service), facts)

        def done() -> None:
            self._parking.parked(message)
            self._begin(delivery.channel)
            self._unsaved.append(delivery)

        self._counters.parked += 1
        self._insist(letter, delivery.channel, done, lambda: self._parking.refused(message))

    def save(self) -> None:
        """Let parked messages be acknowledged once the store knows of them; one question for all.

        It knows of what was done before them first. Else a crash in between would have that come
        again behind them.
        """
        if not self._unsaved or self._unheard or not self._dialogue.has_told:
            return
        if not self._parking.save():
            self._unheard = True
            self._later(_AGAIN, self._tell_again)
            return
        saved, self._unsaved = self._unsaved, []
        for delivery in saved:
            self._end(delivery.channel)
            self._settled(delivery)

    def _tell_again(self) -> None:
        self._unheard = False

    def can_leave(self, task: Task, delay: float) -> bool:
        """Tell whether the message may wait ``delay`` seconds in a retry queue.

        It is one without a key, the wait is not beyond the longest retry queue, and the broker has
        one that loses nothing.
        """
        if task.message.key is not None or delay * 1000 > RETRY_STEPS[-1]:
            return False
        return self._link.declare_retry(delay) is not None

    def leave(self, task: Task, delay: float) -> bool:
        """Let a message wait in a retry queue instead of in memory; tell whether it left."""
        delivery = task.delivery
        queue = self._link.declare_retry(delay) if self.can_leave(task, delay) else None
        if queue is None:
            return False
        message = redirect(
            delivery.arrival,
            task.message.id,
            exchange=queue,
            routing_key=delivery.channel.queue,
            facts=self._origin(delivery),
        )
        # The queue's wait is that or less; the store makes up for the rest.
        self._dialogue.release(task, refund=False, wait=delay)
        self._insist(message, delivery.channel, lambda: self._settled(delivery))
        return True

    def pass_on(self, delivery: Delivery, queue: str) -> None:
        """Send a message to a queue of the next generation; its delivery is settled then."""
        message = delivery.message
        assert message is not None  # noqa: S101 - only a decoded message waits for anything
        facts = self._origin(delivery)
        if (only := message.headers.get(HANDLER)) is not None:  # a dead letter that returned
            facts[HANDLER] = str(only)
        onward = redirect(
            delivery.arrival,
            message.id,
            exchange="",
            routing_key=queue,
            facts=facts,
            drop_prefix=PREFIX,
        )
        delivery.open_tasks = 1
        self._insist(onward, delivery.channel, lambda: self._settled(delivery))

    def _origin(self, delivery: Delivery) -> dict[str, str | int]:
        return origin(delivery.arrival) if self._keeps_routing_keys else {}

    def _begin(self, channel: QueueChannel) -> None:
        self.under_way += 1
        self.of_shard[channel.shard] += 1

    def _end(self, channel: QueueChannel) -> None:
        self.under_way -= 1
        self.of_shard[channel.shard] -= 1

    def _insist(
        self,
        message: Outgoing,
        channel: QueueChannel,
        done: Callable[[], None],
        refused: Callable[[], None] = lambda: None,
    ) -> None:
        """Send ``message`` until the broker has confirmed it; then call ``done``.

        ``refused`` is called when it has refused it for the first time.
        """
        self._begin(channel)
        attempt = 0

        def then(error: PublishError | None) -> None:
            nonlocal attempt
            if error is None:
                self._end(channel)
                done()
                return
            attempt += 1
            if isinstance(error, Unroutable):
                self._link.renew(f"the queue for {message.message_id} is gone: {error}")
            if attempt == 1:
                refused()
                to = message.exchange or message.routing_key
                self._telemetry.emit(PublishRefused(message.message_id, to, str(error)))
            self._later(_pause(attempt), lambda: self._link.send(message, then))

        self._link.send(message, then)


def _hidden_key(message: Message) -> str:
    """Return the key that only this service knows how to find, in the payload say; or nothing."""
    return "" if message.key is None or KEY_HEADER in message.headers else message.key


def _pause(attempt: int) -> float:
    return min(_AGAIN * 2.0 ** min(attempt - 1, 10), _LONGEST_AGAIN)
