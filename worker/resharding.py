"""The steps on the broker from one generation of a service's queues to the next.

Each is taken on connections of its own, by a thread that the consumer's loop does not wait for;
each can be repeated, also by somebody else, after a crash anywhere in it. ``sharding.generations``
has the order of the steps and why it keeps the order of messages.
"""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from functools import partial
from operator import methodcaller
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import amqp.exceptions

from worker.aside import HANDLER, PREFIX, origin, published_as, redirect
from worker.codec import Codec
from worker.deadletters import Box
from worker.declaring import declare
from worker.errors import BrokerUnreachable
from worker.intake import order_key
from worker.message import Message
from worker.parking import unpark_of
from worker.seal import is_marker, marker
from worker.sharding.generations import Phase
from worker.sharding.vacancy import Vacancy
from worker.topology import RETRY_SECONDS, relay_queue, retry_queue
from worker.transport.capabilities import connect
from worker.transport.inbound import losses, release
from worker.transport.outbound import Outbound

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from kombu.connection import Connection

    from worker.app import App
    from worker.config import Settings
    from worker.deadletters import Letter
    from worker.message import Outgoing
    from worker.parking import Unpark
    from worker.sharding.generations import Generation, Plan
    from worker.topology import Topology

logger = logging.getLogger("worker")

_BATCH = 500


def topology_of(app: App, settings: Settings, generation: Generation) -> Topology:
    """Return what one generation of the service declares."""
    return app.topology(replace(settings, shards=generation.shards), generation.number)


def declared_by(app: App, settings: Settings, plan: Plan) -> tuple[Topology, ...]:
    """Return what every process of the service declares when it connects.

    From the step on in which the old generation may be sealed, nobody brings its exchange back.
    """
    current = topology_of(app, settings, plan.current)
    if plan.target is None or plan.phase is Phase.DECLARE:
        return (current,)
    target = topology_of(app, settings, plan.target)
    return (target,) if plan.phase is Phase.REMOVE else (current.without_front(), target)


class State(NamedTuple):
    """How many messages wait in a queue, and how many consume it."""

    ready: int
    consumers: int


class Talk:
    """A connection to ask the broker on, one question after the other. A context manager."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        release(self._connection)

    def ask(self, question: Callable[[Any], Any]) -> Any:
        """Return what ``question`` finds with a channel.

        Raises NotFound as the broker does, what ``question`` raises by itself, and
        BrokerUnreachable for everything else: the broker refused it, or the connection is lost.
        """
        try:
            channel = self._connection.channel()
            answer = question(channel)
            channel.close()  # what was declared without waiting for an answer is refused here
        except amqp.exceptions.NotFound:
            raise
        except self._connection.channel_errors as error:
            raise BrokerUnreachable(f"the broker refused a step of reshard: {error}") from None
        except losses(self._connection) as error:
            text = str(error) or type(error).__name__
            raise BrokerUnreachable(f"the connection to the broker is lost: {text}") from None
        return answer

    def states(self, queues: Iterable[str]) -> dict[str, State]:
        """Return the states of those of the queues that are there."""
        found = {queue: self._state(queue) for queue in queues}
        return {queue: state for queue, state in found.items() if state is not None}

    def _state(self, queue: str) -> State | None:
        try:
            found = self.ask(lambda channel: channel.queue_declare(queue, passive=True))
        except amqp.exceptions.NotFound:
            return None
        return State(int(found.message_count), int(found.consumer_count))


class Resharding:
    """Takes steps for one service. One thread at a time."""

    def __init__(
        self, app: App, settings: Settings, clock: Callable[[], float] = monotonic
    ) -> None:
        self._app = app
        self._clock = clock
        self._settings = settings
        self._codec = Codec.of(app.name, settings)
        #: What the looks at the old queues have come to, where the last one succeeded; and why they
        #: are not removed, as told last.
        self._vacancy: Vacancy | None = None
        self._waits_for = ""

    def declare(self, plan: Plan) -> None:
        """Declare what every process does from now on.

        Raises BrokerUnreachable, and DeclarationMismatch where the broker has something else.
        """
        with self._talk() as talk:
            for topology in declared_by(self._app, self._settings, plan):
                talk.ask(partial(declare, topology=topology))

    def take(self, plan: Plan) -> bool:
        """Take the next step of ``plan``; tell whether it is done, or has to be tried again.

        Raises BrokerUnreachable, PublishError, and DeclarationMismatch where the broker has
        something else.
        """
        vacancy, self._vacancy = self._vacancy, None  # a look that fails makes all before it void
        if plan.target is None:
            return True
        current = topology_of(self._app, self._settings, plan.current)
        target = topology_of(self._app, self._settings, plan.target)
        with self._talk() as talk:
            match plan.phase:
                case Phase.DECLARE:
                    talk.ask(lambda channel: declare(channel, target.unbound()))
                case Phase.SEAL:
                    talk.ask(lambda channel: channel.exchange_delete(current.front))
                    queues = (current.relay,) if current.relay else current.shard_queues
                    number = plan.current.number
                    self._publish([marker(self._codec, number, queue) for queue in queues])
                case Phase.REMOVE:
                    if vacancy is None or vacancy.generation != plan.current.number:
                        vacancy = Vacancy(plan.current.number, RETRY_SECONDS[-1])
                    return self._remove(talk, current, target, vacancy)
                case _:  # what the members do, not the one who leads them
                    pass
        return True

    def _remove(self, talk: Talk, old: Topology, new: Topology, vacancy: Vacancy) -> bool:
        """Move what is left of the old generation to the new one; remove it once it stays empty."""
        began = self._clock()
        queues = [*old.shard_queues, relay_queue(old.service, old.generation)]
        before = talk.states(queues)
        if consumed := [queue for queue, state in before.items() if state.consumers]:
            return self._wait(f"{', '.join(consumed)} still consumed")  # a member has not gone over
        for queue, state in before.items():
            if state.ready:
                self._move(queue, new)
        waiting = talk.states([retry_queue(self._app.name, wait) for wait in RETRY_SECONDS])
        after = talk.states(queues)
        if any(state.consumers for state in after.values()):
            return self._wait("somebody else is at the old queues")
        why = vacancy.look(
            began,
            self._clock(),
            ready=any(state.ready for state in (*before.values(), *after.values())),
            retries=any(state.ready for state in waiting.values()),
        )
        if why:
            self._vacancy = vacancy
            return self._wait(why)
        for queue in after:
            talk.ask(methodcaller("queue_delete", queue))
        own = [x.name for x in old.exchanges if f"{x.name}.".startswith(f"{old.front}.")]
        for exchange in (*own, old.all_bound):
            talk.ask(methodcaller("exchange_delete", exchange))
        self._waits_for = ""
        return True

    def _wait(self, why: str) -> bool:
        """Say, once, why the old queues are not removed yet."""
        if why != self._waits_for:
            self._waits_for = why
            logger.info("reshard: the old queues stay for now: %s", why)
        return False

    def _move(self, queue: str, new: Topology) -> None:
        """Move the messages of a queue to the shards that have their keys now."""
        with Box(queue, self._codec, self._settings) as box:
            batch: list[Letter] = []
            for letter in box.read():
                batch.append(letter)
                if len(batch) >= _BATCH:
                    self._forward(box, batch, new)
                    batch = []
            self._forward(box, batch, new)

    def _forward(self, box: Box, batch: Sequence[Letter], new: Topology) -> None:
        onward: list[Outgoing] = []
        for letter in batch:
            if not is_marker(letter.arrival.properties, letter.arrival.exchange):
                # A dead letter that returns is for the one handler that could not do it.
                facts: dict[str, str | int] = {}
                if unpark := self._unpark_of(letter):
                    facts |= unpark.facts
                if letter.handler:
                    facts[HANDLER] = letter.handler
                if self._settings.name_from == "routing-key":
                    facts |= origin(letter.arrival)
                onward.append(
                    redirect(
                        letter.arrival,
                        letter.id,
                        exchange="",
                        routing_key=new.queue_for(self._key(letter)),
                        facts=facts,
                        drop_prefix=PREFIX,
                    )
                )
        self._publish(onward)
        box.remove(batch)

    def _key(self, letter: Letter) -> str:
        unpark = self._unpark_of(letter)
        if unpark is not None:
            return unpark.key
        message = self._message(letter)
        return letter.id if message is None else order_key(self._app, message)

    def _unpark_of(self, letter: Letter) -> Unpark | None:
        arrival = letter.arrival
        return unpark_of(arrival.properties, arrival.exchange, self._app.name)

    def _message(self, letter: Letter) -> Message | None:
        arrival = letter.arrival
        name = published_as(arrival)
        message = self._codec.decode(arrival.body, arrival.properties, name)
        return message if isinstance(message, Message) else None

    def _talk(self) -> Talk:
        return Talk(self._connect())

    def _connect(self) -> Connection:
        settings = self._settings
        return connect(
            settings.broker,
            heartbeat=0,  # nobody would send them while a step waits for the broker
            timeout=settings.connect_timeout,
            name=f"qworker {self._app.name} {os.getpid()} reshard",
        )

    def _publish(self, messages: Sequence[Outgoing]) -> None:
        """Publish, and wait until all is confirmed. Raises PublishError, BrokerUnreachable."""
        if not messages:
            return
        outbound = Outbound(self._connect(), self._settings.broker)
        try:
            errors = outbound.deliver(messages, self._settings.confirm_timeout)
        finally:
            outbound.close()
        for error in errors:
            if error is not None:
                raise error
