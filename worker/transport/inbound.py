"""The consuming connection: one kombu connection, one channel and one consumer a shard queue.

Made once per connection and thrown away whole when it is lost: connection, channels and
consumers are never rebuilt apart. Everything here is called by the I/O thread only.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import amqp.spec

from worker.errors import BrokerUnreachable
from worker.transport.arrival import Arrival
from worker.transport.capabilities import Capabilities, capabilities_of
from worker.transport.frames import FramePump, ack_frame
from worker.transport.queuechannel import RELAY, SOURCED, Feed, QueueChannel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from kombu.connection import Connection


#: It keeps the window of confirms busy and leaves most of it to what handlers publish.
_RELAY_PREFETCH = 500
#: Seconds for what a lost connection says last.
_FAREWELL = 0.1


class Inbound:
    """Consumes queues on ``connection``, which it then owns."""

    def __init__(self, connection: Connection, url: str, prefetch: int) -> None:
        self.able: Capabilities = capabilities_of(url)
        self.connection = connection
        self._prefetch = prefetch
        self._arrivals: list[Arrival] = []
        self._by_channel: dict[Any, QueueChannel] = {}
        self._questions: Any = None
        #: What ``ask_depths`` found, by queue; and how many of its questions have no answer yet.
        #: They have a channel of their own: a call that waits would take their answers for its own.
        self.depths: dict[str, int] = {}
        self._unanswered = 0
        self._surveys: Any = None
        self._lost = losses(connection)
        self._pump = (
            FramePump(connection.connection, self._arrivals) if self.able.has_socket else None
        )

    def consume(self, queues: Mapping[int, str]) -> None:
        """Consume these queues too: shard, or RELAY, to name. What it raises is in ``losses``."""
        for shard, queue in queues.items():
            channel = self.connection.channel()
            channel.auto_decode = False  # bodies stay bytes
            most = min(self._prefetch, _RELAY_PREFETCH) if shard == RELAY else self._prefetch
            channel.basic_qos(0, most, False)
            self._by_channel[channel] = QueueChannel(shard, queue, channel, most)
            try:
                channel.basic_consume(
                    queue,
                    no_ack=False,
                    callback=self._receive if self._pump is None else self._pump.receive,
                    consumer_tag=_tag(shard),
                )
            except OSError as error:  # a queue without a leader, say, beside others that are well
                told = str(error) or type(error).__name__
                raise OSError(f"{told}, while {queue!r} was asked for its messages") from None

    def consume_source(
        self,
        queue: str,
        *,
        origin: str,
        feed: Feed,
        exclusive: bool,
        arguments: Mapping[str, Any],
    ) -> QueueChannel:
        """Consume a source, for as long as SOURCED is. What it raises is in ``losses``."""
        native = self.connection.channel()
        native.auto_decode = False
        most = min(self._prefetch, _RELAY_PREFETCH)
        native.basic_qos(0, most, False)
        channel = QueueChannel(SOURCED, queue, native, most, feed)
        channel.origin = origin
        self._by_channel[native] = channel
        try:
            native.basic_consume(
                queue,
                no_ack=False,
                exclusive=exclusive,
                callback=self._receive if self._pump is None else self._pump.receive,
                consumer_tag=f"qworker-source-{queue}"[:255],
                arguments=dict(arguments),
            )
        except BaseException:
            channel.closed = channel.leaving = True
            self.forget(channel)
            raise
        return channel

    @property
    def channels(self) -> list[QueueChannel]:
        """The channels, one a queue."""
        return list(self._by_channel.values())

    def fileno(self) -> int | None:
        """Return the descriptor to wait on; None where the broker is polled."""
        return None if self._pump is None else self._pump.fileno()

    def pending(self) -> bool:
        """Tell whether ``fetch`` would find something without the descriptor showing it."""
        return bool(self._arrivals) or (self._pump is not None and self._pump.pending())

    def look(self) -> bool:
        """Tell whether a broker that is polled may have something to fetch, or to do."""
        return bool(self.connection.connection.has_news())

    def fetch(self, limit: int) -> list[tuple[QueueChannel, Arrival]]:
        """Return what was delivered, at most about ``limit``, without blocking.

        Raises BrokerUnreachable where the connection is lost.
        """
        try:
            if self._pump is not None:
                self._pump.pump(limit)
            else:
                self.connection.drain_events(timeout=0)
        except TimeoutError:
            pass
        except self._lost as error:
            raise _lost(error) from None
        if not self._arrivals:
            return []
        channels = self._by_channel
        fetched = []
        for arrival in self._arrivals:
            channel = channels.get(arrival.channel)
            if channel is not None and not (channel.leaving or channel.sealed_at):
                channel.settlement.deliver(arrival.tag)
                fetched.append((channel, arrival))
        self._arrivals.clear()
        return fetched

    def _receive(self, message: amqp.Message) -> None:
        self._arrivals.append(Arrival.of(message))

    def settle(self, *, everything: bool = False, full: bool = False) -> int:
        """Acknowledge what is finished, a frame a channel where possible; return how many.

        ``everything`` also takes what lies behind a gap, as a drain must; ``full`` does so where
        nothing more would be delivered. Those of the relay queue do not count.
        """
        acks: list[tuple[Any, int | None, list[int]]] = []
        count = 0
        for channel in self._by_channel.values():
            settlement = channel.settlement
            if not settlement.finished or channel.closed:
                continue
            before = settlement.finished
            at_once = everything or (full and channel.is_full)
            upto, singles = settlement.take(0 if at_once else channel.slack)
            if upto is not None or singles:
                acks.append((channel.channel, upto, singles))
                count += 0 if channel.relays else before - settlement.finished
        if acks:
            try:
                if self._pump is None:
                    self.connection.connection.settle(acks)  # one transaction
                else:
                    self._pump.write(b"".join(_ack_frames(acks)))
            except self._lost as error:
                raise _lost(error) from None
        return count

    def end_consumers(self) -> None:
        """End all consumers; by then the broker has taken every acknowledgement.

        For looking through a queue only: a shard's consumer must keep its place until its channel
        is closed. RabbitMQ keeps back the single acknowledgements of a quorum queue beyond the 32
        that are on their way, and forgets these when the channel closes (tried on 3.10.8); what a
        shard loses by that comes again as a duplicate. The end of a consumer goes through the log
        of the queue, behind those on their way, and with its answer the rest is sent. Raises
        BrokerUnreachable.
        """
        try:
            for channel in self._by_channel.values():
                channel.channel.basic_cancel(_tag(channel.shard))
        except self._lost as error:
            raise _lost(error) from None

    def close_channel(self, channel: QueueChannel) -> None:
        """Give back what is not acknowledged, in order, and consume the queue no longer.

        Closing the channel is the one way that keeps order: after a cancel, a quorum queue
        serves its next consumer at once, ahead of what this one still holds.
        """
        channel.closed = channel.leaving = True
        try:
            channel.channel.close()
        except self._lost as error:
            raise _lost(error) from None

    def forget(self, channel: QueueChannel) -> None:
        """Know nothing more of a channel that was closed."""
        self._by_channel.pop(channel.channel, None)
        self.depths.pop(channel.queue, None)

    def ask(self, question: Callable[[Any], Any]) -> Any:
        """Ask the broker something (to count, say) on a channel of its own; wait for the answer.

        Raises BrokerUnreachable where the connection is lost, or the channel by this question.
        """
        try:
            if self._questions is None:
                self._questions = self.connection.channel()
            return question(self._questions)
        except self._lost as error:
            raise _lost(error) from None

    def ask_depths(self, queues: Sequence[str], exchanges: Sequence[str] = ()) -> bool:
        """Ask how many messages wait in these queues, and do not wait: ``depths`` will tell.

        Where one of them, or of the ``exchanges``, is not there, a later ``fetch`` raises what it
        does for a connection that is lost. Asks nothing, and returns False, while an earlier
        question has no answer. Raises BrokerUnreachable where the connection is lost.
        """
        if self._unanswered:
            return False
        try:
            if self._surveys is None:
                self._surveys = self.connection.channel()
            for queue in queues:
                self._ask_depth(self._surveys, queue)
            for exchange in exchanges:
                self._ask_for(self._surveys, exchange)
        except self._lost as error:
            raise _lost(error) from None
        return True

    def _ask_depth(self, channel: Any, queue: str) -> None:
        if self._pump is None:
            self.depths[queue] = channel.queue_declare(queue, passive=True).message_count
            return
        # py-amqp's own call waits for the answer, or else asks for none.
        channel._callbacks[amqp.spec.Queue.DeclareOk] = self._note_depth  # noqa: SLF001 - see above
        passive = (0, queue, True, False, False, False, False, None)
        channel.send_method(amqp.spec.Queue.Declare, "BsbbbbbF", passive)
        self._unanswered += 1

    def _ask_for(self, channel: Any, exchange: str) -> None:
        if self._pump is None:
            return  # nobody takes exchanges from an embedded broker
        channel._callbacks[amqp.spec.Exchange.DeclareOk] = self._note_found  # noqa: SLF001 - as above
        passive = (0, exchange, "", True, False, False, False, False, None)
        channel.send_method(amqp.spec.Exchange.Declare, "BssbbbbbF", passive)
        self._unanswered += 1

    def _note_found(self) -> None:
        self._unanswered -= 1

    def _note_depth(self, queue: str, ready: int, _consumers: int) -> None:
        self._unanswered -= 1
        self.depths[queue] = ready

    def keep_alive(self) -> None:
        """Send a heartbeat if it is time to, and notice that the broker's stay away."""
        try:
            self.connection.heartbeat_check()
        except self._lost as error:
            raise _lost(error) from None

    def close(self) -> None:
        """Close every channel, then the connection; never raises."""
        try:
            for shard in self._by_channel.values():
                if not shard.closed:
                    shard.closed = shard.leaving = True
                    shard.channel.close()
        except self._lost:
            pass
        release(self.connection)

    def abandon(self) -> None:
        """Let go of a connection that is lost, without a word to the broker; never raises."""
        for shard in self._by_channel.values():
            shard.closed = shard.leaving = True
        abandon(self.connection, self.able)


def _tag(shard: int) -> str:
    return "qworker-relay" if shard == RELAY else f"qworker-{shard}"


def _ack_frames(acks: list[tuple[Any, int | None, list[int]]]) -> Iterator[bytes]:
    for channel, upto, singles in acks:
        if upto is not None:
            yield ack_frame(channel.channel_id, upto, multiple=True)
        for tag in singles:
            yield ack_frame(channel.channel_id, tag, multiple=False)


def losses(connection: Connection) -> tuple[type[BaseException], ...]:
    """Return what a call on ``connection`` raises where the broker ended it, or its channel."""
    return (
        *connection.connection_errors,
        *connection.channel_errors,
        OSError,
        AttributeError,  # py-amqp, where its transport vanished in the middle of a call
    )


def release(connection: Connection) -> None:
    """Close ``connection`` in order; never raises."""
    with suppress(Exception):  # a dying connection may fail in any way when it is closed
        connection.release()


def abandon(connection: Connection, able: Capabilities) -> None:
    """Let go of a lost ``connection``; never raises.

    An AMQP connection would wait for the broker's answer to its farewell, which may never come,
    and so would the end of its TLS.
    """
    if not able.has_socket:
        release(connection)
        return
    # The public names of both would connect anew, if the broker has closed it.
    native: Any = getattr(connection, "_connection", None)
    transport: Any = getattr(native, "_transport", None)
    with suppress(Exception):  # as above
        transport.sock.settimeout(_FAREWELL)
    with suppress(Exception):
        connection.collect(socket_timeout=_FAREWELL)


def _lost(error: BaseException) -> BrokerUnreachable:
    return BrokerUnreachable(
        f"the connection to the broker is lost: {str(error) or type(error).__name__}"
    )
