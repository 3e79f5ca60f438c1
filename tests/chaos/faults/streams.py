"""A connection through the proxy: two streams, and what rules make of their bytes."""

from __future__ import annotations

import math
import socket
import struct
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from selectors import EVENT_READ, EVENT_WRITE

from machines.network import Way

#: Bytes that a stream keeps. Past that it reads no more, and its sender's window fills.
_ROOM = 1 << 20
#: Seconds' worth of bytes that a stream of limited rate passes on at once.
_SLICE = 0.05
#: Closing a socket sends RST instead of FIN, and forgets what was not sent.
_ABORT = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class Rule:
    """What a fault does to what goes a way, and to new connections."""

    way: Way = Way.BOTH
    #: It is swallowed.
    drop: bool = False
    #: It is kept until the fault is over, whatever becomes of its sender.
    hold: bool = False
    #: Seconds by which it comes later.
    delay: float = 0.0
    #: Bytes a second.
    rate: float = math.inf
    #: Nobody listens.
    refuse: bool = False


def combined(rules: Iterable[Rule], way: Way) -> Rule:
    """Return what several faults at once do to what goes a way."""
    mine = [rule for rule in rules if rule.way in (way, Way.BOTH)]
    return Rule(
        way,
        drop=any(rule.drop for rule in mine),
        hold=any(rule.hold for rule in mine),
        delay=max((rule.delay for rule in mine), default=0.0),
        rate=min((rule.rate for rule in mine), default=math.inf),
    )


class Stream:
    """What goes one way, from one socket to another; neither blocks."""

    def __init__(self, source: socket.socket, target: socket.socket) -> None:
        self.source = source
        self.target = target
        #: Something was swallowed, so the rest would make no sense.
        self.torn = False
        #: The end of the source was read; the target was told, or is gone itself.
        self.ended = False
        self.done = False
        self.failed = False
        #: The target takes no more for now.
        self.blocked = False
        #: When to flush again.
        self.due = math.inf
        self._waiting: deque[tuple[float, bytes | None]] = deque()
        self._size = 0
        self._free = 0.0

    @property
    def reads(self) -> bool:
        """Whether the source is listened to."""
        return not self.ended and self._size < _ROOM

    @property
    def empty(self) -> bool:
        """Whether all that was put was passed on."""
        return not self._waiting

    def put(self, chunk: bytes | None, now: float) -> None:
        """Take what the source sent; nothing is its end, and None its reset."""
        self.ended = not chunk
        if not self.done:
            self._waiting.append((now, chunk))
            self._size += len(chunk or b"")

    def flush(self, rule: Rule, now: float) -> None:
        """Pass on what is due. Raises ConnectionResetError where that is a reset."""
        self.due = math.inf
        if rule.drop and self._waiting:
            self._forget()
            self.torn = True
        while self._waiting and not rule.hold and not self.blocked:
            arrived, chunk = self._waiting[0]
            due = max(arrived + rule.delay, self._free)
            if due > now:
                self.due = due
                return
            if chunk is None:
                raise ConnectionResetError
            self._pass(arrived, chunk, rule.rate, now)

    def _pass(self, arrived: float, chunk: bytes, rate: float, now: float) -> None:
        part = chunk if math.isinf(rate) else chunk[: max(1, int(rate * _SLICE))]
        try:
            if not chunk:
                self.target.shutdown(socket.SHUT_WR)
                self.done = True
            sent = self.target.send(part) if chunk else 0
        except BlockingIOError:
            self.blocked = True
            return
        except OSError:  # the target is gone, which the stream that it is the source of will tell
            self._forget()
            self.done = self.failed = True
            return
        self._waiting.popleft()
        if sent < len(chunk):
            self._waiting.appendleft((arrived, chunk[sent:]))
        self._size -= sent
        self._free = now + sent / rate

    def _forget(self) -> None:
        self._waiting.clear()
        self._size = 0


class Pair:
    """A client's connection to the proxy, and the proxy's own to the server."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        for end in (client, server):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.to = Stream(client, server)
        self.back = Stream(server, client)
        #: The events that each socket is watched for at present.
        self.watched = {client: 0, server: 0}

    @property
    def due(self) -> float:
        """When to flush again."""
        return min(self.to.due, self.back.due)

    @property
    def torn(self) -> bool:
        """Whether something was swallowed, either way."""
        return self.to.torn or self.back.torn

    def ways(self) -> Iterable[tuple[Way, Stream]]:
        """Return both streams."""
        return (Way.TO, self.to), (Way.FROM, self.back)

    def wanted(self) -> Iterable[tuple[socket.socket, Way, int]]:
        """Return for which events each socket has to be watched."""
        for way, own, other in ((Way.TO, self.to, self.back), (Way.FROM, self.back, self.to)):
            events = (EVENT_READ if own.reads else 0) | (EVENT_WRITE if other.blocked else 0)
            yield own.source, way, events

    def close(self, *, abort: bool) -> None:
        """Close both sockets; ``abort``: with a reset."""
        for end in self.watched:
            with suppress(OSError):
                if abort:
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
            end.close()
