"""From what the broker delivered to the tasks that it means, or the reason why it means none."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from worker.again import chosen_handlers, occasion_of, record_again
from worker.aside import HANDLER, published_as
from worker.barrier import BARRIER, Barrier, is_barrier, told_by
from worker.dedup.base import fingerprint
from worker.message import KEY_HEADER, Message
from worker.outcome import DeadLetter
from worker.parking import MARKER, Unpark, unpark_of
from worker.payload import Unfit
from worker.revisions import Progress
from worker.seal import SEAL, Sealed, is_marker
from worker.task import Delivery, Task

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.app import App
    from worker.codec import Codec
    from worker.handler import Handler
    from worker.transport.arrival import Arrival
    from worker.transport.queuechannel import Feed


@dataclass(frozen=True, slots=True)
class ToShard:
    """The message came without a slot; it goes on to the shard of ``key``."""

    key: str


#: What a delivery turns out to be.
Found = list[Task] | DeadLetter | Unpark | ToShard | Sealed | Barrier

_OF_THE_RUNTIME = MARKER, SEAL, BARRIER


class Intake:
    """Reads deliveries for one app. Used by the I/O thread.

    Of user code it runs what finds keys, and the values that relays deduplicate by; and what
    decoding a payload for these runs.
    """

    def __init__(self, app: App, codec: Codec) -> None:
        self._app = app
        self._decode = codec.decode
        self._name_of = codec.name_of
        #: The pattern of one word takes the slots too, so that every event of this exchange comes.
        takes_slots = any(handler.pattern == "*" for handler in app.handlers.values())
        self._too_much_from = codec.events_exchange if takes_slots else None
        #: What is done with each task, where any handler needs it.
        self._preparations: list[Callable[[Task], None]] = []
        if any(handler.identify for handler in app.handlers.values()):
            self._preparations.append(_identify)
        if any(handler.revisions for handler in app.handlers.values()):
            self._preparations.append(_judge_by_revision)

    def read(self, delivery: Delivery, arrival: Arrival) -> Found:
        """Return a task for each handler that observes the message, or why there is none.

        An empty list says that the message came by mistake, and means nobody here.
        """
        properties = arrival.properties
        waits = False
        feed = delivery.channel.feed
        if feed is not None:
            if feed.is_stream and self._stays(feed, arrival):
                return []
        elif properties.get("type") in _OF_THE_RUNTIME:
            if is_marker(properties, arrival.exchange):
                return Sealed()
            waits = is_barrier(properties, arrival.exchange)
            unpark = unpark_of(properties, arrival.exchange, self._app.name)
            if unpark is not None and not delivery.channel.relays:
                return unpark
        message = self._decode(
            arrival.body,
            properties,
            published_as(arrival),
            redelivered=arrival.redelivered,
            shard=delivery.channel.shard,
        )
        if isinstance(message, DeadLetter):
            return message
        delivery.message = message
        if waits:
            message.barrier = told_by(properties)
        if delivery.channel.relays:
            return Barrier([]) if waits else ToShard(order_key(self._app, message))
        delivery.fingerprint = fingerprint(message.body)
        tasks = self._tasks(delivery, message)
        return Barrier(tasks) if waits and isinstance(tasks, list) else tasks

    def _stays(self, feed: Feed, arrival: Arrival) -> bool:
        """Tell whether a message stays in its stream: it was passed on, or is for others."""
        if feed.has_passed(arrival):
            return True
        name = self._name_of(arrival.body, arrival.properties, published_as(arrival))
        return name is not None and not self._app.route(name)

    def _tasks(self, delivery: Delivery, message: Message) -> list[Task] | DeadLetter:
        handlers = self._app.route(message.name)
        if not handlers:
            if delivery.arrival.exchange == self._too_much_from and "." in message.name:
                return []
            return DeadLetter(f"no handler of {self._app.name!r} observes {message.name!r}")
        if message.key is None and KEY_HEADER not in message.headers:  # whoever it is for now
            message.key = _key_in_payload(message, handlers)
        if (only := message.headers.get(HANDLER)) is not None:  # a dead letter that returns
            handlers = tuple(handler for handler in handlers if handler.name == only)
            if not handlers:
                return DeadLetter(f"it returned to the handler {only!r}, which is not there")
        if (chosen := chosen_handlers(message.headers)) is not None:
            handlers = tuple(handler for handler in handlers if handler.name in chosen)
            if not handlers:
                names = ", ".join(sorted(chosen))
                return DeadLetter(f"it was replayed for handlers that are not there: {names}")
        delivery.open_tasks = len(handlers)
        tasks = [Task(delivery, message, handler) for handler in handlers]
        occasion = occasion_of(message.headers)
        if self._preparations or occasion:
            self._prepare(tasks, occasion)
        return tasks

    def _prepare(self, tasks: list[Task], occasion: str) -> None:
        """Let tasks know by what they are remembered and judged."""
        for task in tasks:
            for prepare in self._preparations:
                prepare(task)
            if occasion:
                _remember_again(task, occasion)


def order_key(app: App, message: Message) -> str:
    """Return what decides which shard has ``message``, exactly as the shard finds it; or the id."""
    key = message.key
    if key is None and KEY_HEADER not in message.headers:
        key = _key_in_payload(message, app.route(message.name))
    return key or message.id


def _key_in_payload(message: Message, handlers: tuple[Handler, ...]) -> str | None:
    """Return the key that a handler finds in the payload of a foreign publisher."""
    for handler in handlers:
        if handler.key_by is not None:
            try:
                return handler.key_by(handler.decode(message))
            except Unfit:
                return None  # the handler's own decoding will say so
            except Exception:  # noqa: BLE001 - a key function of the user met a payload it cannot read
                return None
    return None


def _identify(task: Task) -> None:
    """Let the value that its relay deduplicates by stand for the id of ``task``.

    Where there is none to find, the relay finds that out too when it runs, and dead-letters it.
    """
    if task.handler.identify is not None:
        with suppress(Exception):  # whatever a function of the user raises
            task.record, task.fingerprint = task.handler.identify(task.message)


def _judge_by_revision(task: Task) -> None:
    """Let a task of a handler with revisions know where the last one of its key is."""
    handler, key = task.handler, task.message.key
    if handler.revisions is not None:
        task.progress = Progress(b"" if key is None else handler.place_of(key))


def _remember_again(task: Task, occasion: str) -> None:
    """Give a task that is done again on this occasion a memory of its own."""
    task.record = record_again(task.record, occasion)
    if task.progress is not None and task.progress.place:
        task.progress.place = record_again(task.progress.place, occasion)
