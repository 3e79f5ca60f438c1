"""The link to the broker: the consuming and the publishing connection, made and lost together.

They are rebuilt whole (connections, declarations, channels, consumers), so a consumer that is
connected is consuming; there is no state in between. What was on its way to being confirmed when
the link broke is sent again on the next one.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from amqp.exceptions import AccessRefused

from worker.declaring import declare, depth, is_untouched, not_there
from worker.errors import BrokerUnreachable, ConfigurationError, LeasesUnavailable, PublishError
from worker.foreign import Foreign
from worker.retry import RetryPolicy
from worker.retryqueues import RetryQueues
from worker.telemetry import BrokerLost, BrokerRegained
from worker.transport.capabilities import capabilities_of, connect
from worker.transport.inbound import Inbound, losses, release
from worker.transport.outbound import Outbound
from worker.transport.queuechannel import RELAY, SOURCED, QueueChannel

if TYPE_CHECKING:
    from random import Random

    from kombu.connection import Connection

    from worker.config import Settings
    from worker.message import Outgoing
    from worker.sourcing import Sourcing
    from worker.telemetry import Telemetry
    from worker.topology import Topology
    from worker.transport.arrival import Arrival
    from worker.transport.outbound import Sent

logger = logging.getLogger("worker")

_RECONNECT = RetryPolicy(attempts=2**31, first_wait=0.1, max_wait=5.0, jitter=0.3)
#: Seconds after which a connection counts as one that holds.
_STABLE = 5.0
#: Shorter than a claim lives: while it connects, the loop renews nothing.
_CONNECT_TIMEOUT = 2.0

Then = Callable[[PublishError | None], None]


class Link:
    """Both connections of one consumer. Used by the I/O thread only."""

    def __init__(
        self,
        settings: Settings,
        *,
        topology: Topology,
        service: str,
        telemetry: Telemetry,
        random: Random,
    ) -> None:
        self._settings = settings
        #: What is consumed.
        self.topology = topology
        #: What is declared at each connection.
        self.declared: tuple[Topology, ...] = (topology,)
        #: Asked right before that: whether it is still what shall be there.
        self.may_declare: Callable[[], bool] = lambda: True
        #: Consumes the sources of the service, where it has any.
        self.sourcing: Sourcing | None = None
        self._shards: set[int] = set()
        self._service = service
        self._telemetry = telemetry
        self._random = random
        self._inbound: Inbound | None = None
        self._outbound: Outbound | None = None
        self._waiting: dict[int, tuple[Outgoing, Then]] = {}
        #: Those of them that a lost connection ends.
        self._once: set[int] = set()
        self._unsent: list[Outgoing] = []
        #: What a lost connection still heard; ``publish`` tells it.
        self._last_words: list[Sent] = []
        self._retries = RetryQueues(service, settings)
        self._foreign = Foreign()
        self._failures = 0
        self._complaint = ""
        self._lost_at: float | None = None
        self._up_since = 0.0
        self._lacking = ""
        #: Something was lacking, and was not declared anew yet.
        self._is_lacking = False
        #: When to try again while the link is down; monotonic.
        self.next_try = 0.0

    @property
    def is_up(self) -> bool:
        """Whether it is connected, and so consuming."""
        return self._inbound is not None

    @property
    def outstanding(self) -> int:
        """How many messages were sent and are not confirmed."""
        return len(self._waiting)

    @property
    def channels(self) -> list[QueueChannel]:
        """What it consumes, a channel a queue; none while it is down."""
        return [] if self._inbound is None else self._inbound.channels

    def open(self, *, again: bool = False) -> None:
        """Connect, declare, and consume the shards that were taken, and the relay queue.

        Raises BrokerUnreachable, LeasesUnavailable where by now it may not declare anything, or
        ConfigurationError where the broker has something else of that name or refuses the user, or
        lacks an exchange of somebody else; ``again``, that one is told of, and waited for.
        """
        settings, topology = self._settings, self.topology
        queues = {shard: topology.queue_of(shard) for shard in sorted(self._shards)}
        outbound: Outbound | None = None
        inbound_connection = self._connect("consume")
        try:
            self._declare(inbound_connection, again=again)
            self._retries.declare_again(inbound_connection)
            if settings.burst:  # which ends when these are empty too
                self._retries.find(inbound_connection)
            # Not before: declaring may take longer than the broker waits for a heartbeat.
            outbound = Outbound(self._connect("publish"), settings.broker)
            if topology.relay:
                queues[RELAY] = topology.relay
            inbound = Inbound(inbound_connection, settings.broker, settings.prefetch)
            inbound.consume(queues)
        except BaseException as error:
            release(inbound_connection)
            if outbound is not None:
                outbound.close()
            if isinstance(error, AccessRefused):
                raise ConfigurationError(f"the broker does not let this user: {error}") from None
            if isinstance(error, losses(inbound_connection)):
                text = str(error) or type(error).__name__
                raise BrokerUnreachable(f"the broker ended the connection: {text}") from None
            raise
        outbound.send(self._unsent)
        self._unsent = []
        self._inbound, self._outbound = inbound, outbound

    def _declare(self, connection: Connection, *, again: bool) -> None:
        if not self.may_declare():  # connecting may have taken long
            raise LeasesUnavailable("the lease store was not heard of for too long to declare")
        channel = connection.channel()
        lacking: list[str] = []
        for each in self.declared:
            lacking += declare(channel, each, thoroughly=self._is_lacking)
        if self.sourcing is not None:
            self.sourcing.declare(connection)
        self._is_lacking = False
        channel.close()
        if lacking and not again:
            raise ConfigurationError(not_there(dict.fromkeys(lacking)))

    def _connect(self, purpose: str) -> Any:
        return connect(
            self._settings.broker,
            heartbeat=self._settings.heartbeat,
            timeout=min(self._settings.connect_timeout, _CONNECT_TIMEOUT),
            name=f"qworker {self._service} {os.getpid()} {purpose}",
        )

    def ensure(self, now: float) -> bool:
        """Reconnect if the link is down and it is time to; tell whether it just came up.

        Raises BrokerUnreachable where the link is up and lacks something.
        """
        if self._inbound is not None:
            if self._lacking:
                lacking, self._lacking, self._is_lacking = self._lacking, "", True
                raise BrokerUnreachable(lacking)
            if now >= self._foreign.due and self.may_declare():
                self._foreign.tend(self._inbound.connection, self.declared, now)
            if self.sourcing is not None and SOURCED in self._shards:
                origin = self.topology.relay or self.topology.queue_of(SOURCED)
                self.sourcing.tend(self._inbound, now, origin=origin)
            return False
        if now < self.next_try:
            return False
        try:
            self.open(again=True)
        except (BrokerUnreachable, ConfigurationError) as error:
            # What is wrong with the broker now was right at the start: it may be so again.
            if isinstance(error, ConfigurationError) and str(error) != self._complaint:
                self._complaint = str(error)
                logger.warning("not consuming until this is mended: %s", error)
            self._back_off(error, now)
            return False
        except LeasesUnavailable:
            return False
        self._up_since = now
        if self._lost_at is not None:
            self._telemetry.emit(BrokerRegained(round(now - self._lost_at, 3)))
            self._lost_at = None
            self._complaint = ""
        return True

    def drop(self, error: BrokerUnreachable, now: float) -> None:
        """Forget both connections; ``ensure`` makes new ones."""
        if self._inbound is None:
            return
        self._telemetry.emit(BrokerLost(str(error)))
        self._lost_at = self.next_try = now
        if now - self._up_since > _STABLE:
            self._failures = 0
        else:  # it came up only to go down again
            self._back_off(error, now)
        inbound, outbound = self._inbound, self._outbound
        self._inbound = self._outbound = None
        inbound.abandon()
        if outbound is not None:
            self._last_words += outbound.decided()
            self._unsent = self._lasting(outbound.unconfirmed())
            outbound.abandon()

    def _lasting(self, messages: list[Outgoing]) -> list[Outgoing]:
        for message in messages:
            if id(message) in self._once:
                del self._waiting[id(message)]
        lasting = [message for message in messages if id(message) not in self._once]
        self._once.clear()
        return lasting

    def _back_off(self, error: Exception, now: float) -> None:
        self._failures += 1
        self.next_try = now + (_RECONNECT.next_wait(self._failures, error, self._random) or 0.0)

    def renew(self, lacking: str) -> None:
        """Connect and declare anew, because something that was declared is no longer there."""
        self._lacking = lacking

    def filenos(self) -> list[int]:
        """Return the descriptors to wait on; none where the broker is polled."""
        both = (self._inbound, self._outbound)
        found = [end.fileno() for end in both if end is not None]
        return [number for number in found if number is not None]

    @property
    def is_polled(self) -> bool:
        """Whether the broker has no socket to wait on."""
        return not capabilities_of(self._settings.broker).has_socket

    def pending(self) -> bool:
        """Tell whether ``fetch`` would find something that no descriptor shows."""
        return self._inbound is not None and self._inbound.pending()

    def look(self) -> bool:
        """Tell whether a broker that is polled may have something; false while it is away."""
        return self._inbound is not None and self._inbound.look()

    def fetch(self, limit: int) -> list[tuple[QueueChannel, Arrival]]:
        """Return what was delivered. Raises BrokerUnreachable where the link broke."""
        return [] if self._inbound is None else self._inbound.fetch(limit)

    def settle(self, *, everything: bool = False, full: bool = False) -> int:
        """Acknowledge what is finished. Raises BrokerUnreachable where the link broke."""
        return self._inbound.settle(everything=everything, full=full) if self._inbound else 0

    def take(self, shards: Collection[int], *, again: bool = False) -> None:
        """Consume these shards too, now and after each reconnection. Raises BrokerUnreachable.

        ``again``: they were taken before, and their channels are closed.
        """
        new = sorted(set(shards) - (set() if again else self._shards))
        self._shards.update(new)
        if self._inbound is None or not new:
            return
        try:
            self._inbound.consume({shard: self.topology.queue_of(shard) for shard in new})
        except losses(self._inbound.connection) as error:
            text = str(error) or type(error).__name__
            raise BrokerUnreachable(f"a shard cannot be consumed: {text}") from None

    def leave(self, shards: Collection[int]) -> None:
        """Deliver nothing more of these shards; their channels take acks until they are closed."""
        self._shards.difference_update(shards)
        for channel in self.channels:
            channel.leaving = channel.leaving or channel.shard in shards

    def close_channel(self, channel: QueueChannel) -> None:
        """Stop consuming a queue. Raises BrokerUnreachable where the link broke."""
        if self._inbound is not None and not channel.closed:
            self._inbound.close_channel(channel)

    def forget_channel(self, channel: QueueChannel) -> None:
        """Know nothing more of a channel that was closed."""
        if self._inbound is not None:
            self._inbound.forget(channel)

    def close_relay(self) -> None:
        """Leave the relay queue, and sources, to another process. Raises BrokerUnreachable."""
        if self.sourcing is not None:
            self.sourcing.save()
        for channel in self.channels:
            if channel.relays:
                self.close_channel(channel)

    def send(self, message: Outgoing, then: Then, *, again: bool = True) -> None:
        """Send ``message``; ``then`` is called in the I/O thread once its fate is known.

        A link that breaks meanwhile sends it ``again``, or else forgets both; ``then`` gets an
        error only where the broker refused it.
        """
        self._waiting[id(message)] = (message, then)
        if not again:
            self._once.add(id(message))
        if self._outbound is not None:
            self._outbound.send((message,))
        elif again:
            self._unsent.append(message)
        else:
            self._lasting([message])

    def publish(self) -> int:
        """Move what is being sent; return how many messages were confirmed or refused.

        Raises BrokerUnreachable where the link broke.
        """
        fates, self._last_words = self._last_words, []
        if not fates and self._outbound is not None:
            fates = self._outbound.pump()
        for message, error in fates:
            _, then = self._waiting.pop(id(message))
            self._once.discard(id(message))
            then(error)
        return len(fates)

    def keep_alive(self) -> None:
        """Heartbeats, both ways, on both connections. Raises BrokerUnreachable."""
        if self._inbound is not None and self._outbound is not None:
            self._inbound.keep_alive()
            self._outbound.keep_alive()

    def declare_retry(self, delay: float) -> str | None:
        """Declare the retry queue for ``delay`` and return its name; None where it cannot be."""
        # On the consuming connection: the broker may have stopped reading the other one.
        connection = None if self._inbound is None else self._inbound.connection
        return self._retries.declare(delay, connection)

    def depths(self) -> Mapping[str, int]:
        """Return the messages that wait in the queues it consumes. Raises BrokerUnreachable."""
        inbound = self._inbound
        if inbound is None:
            return {}
        consumed = [c for c in inbound.channels if not c.closed and not c.keeps_all]
        queues = [c.queue for c in consumed] + [*self._retries.names]
        depths = {queue: inbound.ask(partial(depth, queue)) for queue in queues}
        if self.sourcing is not None and SOURCED in self._shards and not self.sourcing.is_quiet:
            depths[self.topology.entry] = 1  # there may be more to come by it
        return depths

    def is_untouched(self, queue: str) -> bool:
        """Tell whether a queue is empty and nobody reads it. Raises BrokerUnreachable."""
        return self._inbound is not None and bool(self._inbound.ask(partial(is_untouched, queue)))

    def survey(self, queues: Sequence[str]) -> bool:
        """Ask how full these queues are, without waiting; False where that cannot be asked now.

        And whether the exchanges are there: the broker tells nobody when one is removed, and drops
        what is published past it. Where one is missing, ``fetch`` says that the link broke, and
        what is declared at the next one brings it back. Raises BrokerUnreachable where it broke.
        """
        exchanges = {name for each in self.declared for name in each.exchange_names}
        return self._inbound is not None and self._inbound.ask_depths(queues, sorted(exchanges))

    @property
    def surveyed(self) -> Mapping[str, int]:
        """What ``survey`` found: the messages that wait in each queue, when it was asked last."""
        return {} if self._inbound is None else self._inbound.depths

    def switch(self, topology: Topology) -> None:
        """Leave everything that is consumed; the next ``ensure`` consumes this instead."""
        self.topology = topology
        if self._outbound is not None:
            self._last_words += self._outbound.decided()
            self._unsent = self._lasting(self._outbound.unconfirmed())
        self.close()
        self.next_try = 0.0

    def close(self) -> None:
        """Give back what is not acknowledged, in order, and disconnect. Never raises."""
        inbound, outbound = self._inbound, self._outbound
        self._inbound = self._outbound = None
        if inbound is not None:
            inbound.close()
        if outbound is not None:
            outbound.close()
