"""A link to a server that can be slowed, held, cut, reset, refused and robbed of an answer.

A thread of this process passes on what goes through it, on the loopback interface. Unlike the links
of ``machines.network`` it needs no privileges, and can do what happens above TCP: end a connection
between a request and its answer, so that nobody knows whether it took effect.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Self
from urllib.parse import urlsplit

from chaos.faults.exchange import Exchange, Snare
from chaos.faults.streams import Rule
from machines.network import Way
from servers.process import free_ports

#: For ``lose_reply`` of a message published: AMQP's basic.publish, and RabbitMQ's basic.ack of it.
PUBLISH = b"\x00\x3c\x00\x28"
CONFIRM = b"\x00\x3c\x00\x50"


class Proxy:
    """Stands before the server of ``url``, until it is closed. Any thread may call it.

    Faults may be had at once, several of a kind too: the longest delay holds, the lowest rate,
    and what one of them swallows is gone. ``way`` is seen from the client.
    """

    def __init__(self, url: str, *, also_at: str = "") -> None:
        place = urlsplit(url)
        assert place.port, f"{url} names no port"
        self._behind = place.port
        (self.port,) = free_ports(1)
        addresses = ["127.0.0.1", also_at] if also_at else ["127.0.0.1"]
        self._exchange = Exchange(addresses, self.port, ("127.0.0.1", place.port))
        self._order = self._exchange.order

    def url_through(self, url: str) -> str:
        """Return the URL of the same place at the server, by way of the proxy."""
        place = urlsplit(url).netloc
        host, _, port = place.rpartition(":")
        assert int(port) == self._behind, f"{url} is another server's"
        return url.replace(place, f"{host}:{self.port}", 1)

    @property
    def connections(self) -> int:
        """How many connections there are."""
        return len(self._exchange.pairs)

    @property
    def torn(self) -> int:
        """How many of them have lost something, and will be reset."""
        return sum(pair.torn for pair in list(self._exchange.pairs))

    def delay(self, seconds: float, way: Way = Way.BOTH) -> AbstractContextManager[None]:
        """Let everything come later, in its order; an answer, both ways, by twice as much."""
        return self._under(Rule(way, delay=seconds))

    def limit(self, rate: float, way: Way = Way.BOTH) -> AbstractContextManager[None]:
        """Pass on so many bytes a second at the most, of each connection."""
        return self._under(Rule(way, rate=rate))

    def hold(self, way: Way = Way.BOTH) -> AbstractContextManager[None]:
        """Keep everything until the end, as TCP does that sends it until the cut is mended.

        So a request arrives whose sender has given up and gone.
        """
        return self._under(Rule(way, hold=True))

    def cut(self, way: Way = Way.BOTH) -> AbstractContextManager[None]:
        """Swallow everything, ends of connections too; nobody learns.

        At the end a connection that lost something is reset; the others go on. One that is made
        meanwhile seems to come about (the kernel sees to that), and is silent.
        """
        return self._under(Rule(way, drop=True))

    def refuse(self) -> AbstractContextManager[None]:
        """Refuse new connections; those that there are go on."""
        return self._under(Rule(refuse=True))

    @contextmanager
    def lose_reply(self, asked: bytes = b"", answered: bytes = b"") -> Iterator[threading.Event]:
        """Reset the next connection that asks something, both ways, once the server has answered.

        The request took effect and nobody knows. Gives an event: it has happened. Where not any
        request and answer is meant, name bytes of them.
        """
        snare = Snare(asked, answered)
        self._order(partial(self._exchange.arm, snare))
        try:
            yield snare.sprung
        finally:
            self._order(partial(self._exchange.disarm, snare))

    def reset(self) -> None:
        """Reset all connections, both ways."""
        self._order(self._exchange.reset)

    def heal(self) -> None:
        """End all faults at once, also those whose block still runs."""
        self._order(self._exchange.heal)

    def close(self) -> None:
        """End for good, with all connections."""
        self._exchange.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @contextmanager
    def _under(self, rule: Rule) -> Iterator[None]:
        self._order(partial(self._exchange.enforce, rule))
        try:
            yield
        finally:
            self._order(partial(self._exchange.lift, rule))
