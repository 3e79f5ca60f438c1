"""The thread behind a proxy: it has all connections and rules, and nobody else touches them."""

from __future__ import annotations

import math
import selectors
import socket
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from errno import EINPROGRESS
from functools import partial
from queue import Empty, SimpleQueue
from time import monotonic

from chaos.faults.streams import Pair, Rule, combined
from machines.network import Way

_CHUNK = 65_536
#: Seconds in which an order has to be carried out.
_PATIENCE = 30.0


class Snare:
    """Waits for a request, lets it through, and ends the connection instead of its answer."""

    def __init__(self, asked: bytes, answered: bytes) -> None:
        self.sprung = threading.Event()
        self.pair: Pair | None = None
        self._asked = asked
        self._answered = answered
        self._heard = b""

    def catches(self, pair: Pair, way: Way, chunk: bytes) -> bool:
        """Tell whether this must not be passed on, since it follows the request."""
        if way is Way.TO:
            if self.pair is None and self._asked in chunk:
                self.pair = pair
            return False
        if pair is not self.pair:
            return False
        self._heard += chunk
        # What comes while the request is still on its way is no answer to it.
        if pair.to.empty and self._answered in self._heard:
            self.sprung.set()
        return True


class Exchange:
    """Listens at ``addresses``, and passes on to ``server`` what comes there.

    Only ``order`` is for other threads. What it is given may call the rest.
    """

    def __init__(self, addresses: Sequence[str], port: int, server: tuple[str, int]) -> None:
        #: The connections that there are.
        self.pairs: set[Pair] = set()
        self.closed = False
        self._places = [(address, port) for address in addresses]
        self._server = server
        self._rules: list[Rule] = []
        self._in_force = {way: combined((), way) for way in (Way.TO, Way.FROM)}
        self._snares: list[Snare] = []
        self._timed: set[Pair] = set()
        self._listeners: list[socket.socket] = []
        self._orders: SimpleQueue[tuple[Callable[[], None], Future[None]]] = SimpleQueue()
        self._selector = selectors.DefaultSelector()
        self._bell, self._ear = socket.socketpair()
        self._ear.setblocking(False)
        self._selector.register(self._ear, selectors.EVENT_READ, self._obey)
        self._thread = threading.Thread(target=self._run, name=f"proxy {port}", daemon=True)
        self._thread.start()
        self.order(self._changed)

    def order(self, what: Callable[[], None]) -> None:
        """Have something done by the thread, and wait until it is; nothing, once it is closed."""
        if not self.closed:
            done: Future[None] = Future()
            self._orders.put((what, done))
            self._bell.send(b"!")
            done.result(_PATIENCE)

    def close(self) -> None:
        """End the thread and all connections. For other threads too."""
        self.order(self._stop)
        self._thread.join(_PATIENCE)

    # What is ordered

    def enforce(self, rule: Rule) -> None:
        """Bring a rule into force."""
        self._rules.append(rule)
        self._changed()

    def lift(self, rule: Rule) -> None:
        """Undo ``enforce``."""
        with suppress(ValueError):  # ``heal`` came first
            self._rules.remove(rule)
        self._changed()

    def arm(self, snare: Snare) -> None:
        """Lay a snare."""
        self._snares.append(snare)

    def disarm(self, snare: Snare) -> None:
        """Undo ``arm``; a connection that misses an answer is reset."""
        with suppress(ValueError):  # it has sprung, or ``heal`` came first
            self._snares.remove(snare)
            if snare.pair is not None:
                self._drop(snare.pair, abort=True)

    def reset(self) -> None:
        """Reset all connections."""
        for pair in list(self.pairs):
            self._drop(pair, abort=True)

    def heal(self) -> None:
        """Undo everything."""
        self._rules.clear()
        for snare in list(self._snares):
            self.disarm(snare)
        self._changed()

    def _stop(self) -> None:
        self.reset()
        self.closed = True

    # What the thread does

    def _run(self) -> None:
        while not self.closed:
            due = min((pair.due for pair in self._timed), default=math.inf)
            patience = None if math.isinf(due) else max(0.0, due - monotonic())
            for key, events in self._selector.select(patience):
                key.data(events)
            for pair in list(self._timed):
                if pair.due <= monotonic():
                    self._pump(pair)
        self._listen(wanted=False)
        self._selector.close()
        self._bell.close()
        self._ear.close()

    def _obey(self, _events: int) -> None:
        with suppress(BlockingIOError):
            self._ear.recv(_CHUNK)
        with suppress(Empty):
            while True:
                what, done = self._orders.get_nowait()
                try:
                    what()
                except Exception as error:  # noqa: BLE001 - whoever gave the order gets it
                    done.set_exception(error)
                else:
                    done.set_result(None)

    def _changed(self) -> None:
        """Let the rules of now come into force."""
        self._in_force = {way: combined(self._rules, way) for way in self._in_force}
        self._listen(wanted=not any(rule.refuse for rule in self._rules))
        for pair in list(self.pairs):
            if any(s.torn and not self._in_force[way].drop for way, s in pair.ways()):
                self._drop(pair, abort=True)
            self._pump(pair)

    def _listen(self, *, wanted: bool) -> None:
        if not wanted:
            for listener in self._listeners:
                self._selector.unregister(listener)
                listener.close()
            self._listeners.clear()
        elif not self._listeners:
            for place in self._places:
                listener = socket.create_server(place, backlog=128)
                listener.setblocking(False)
                self._listeners.append(listener)
                self._selector.register(
                    listener, selectors.EVENT_READ, partial(self._accept, listener)
                )

    def _accept(self, listener: socket.socket, _events: int) -> None:
        try:
            client = listener.accept()[0]
        except OSError:  # the client has given up, or nobody listens any more
            return
        server = socket.socket()
        pair = Pair(client, server)
        self.pairs.add(pair)
        if server.connect_ex(self._server) not in (0, EINPROGRESS):
            pair.back.put(None, monotonic())  # nobody is there
        self._pump(pair)

    def _serve(self, pair: Pair, way: Way, events: int) -> None:
        """Do what the socket is ready for that is the source of a way."""
        if pair not in self.pairs:  # dropped since the selector looked
            return
        own, other = (pair.to, pair.back) if way is Way.TO else (pair.back, pair.to)
        if events & selectors.EVENT_WRITE:
            other.blocked = False
        if events & selectors.EVENT_READ and own.reads:
            try:
                chunk: bytes | None = own.source.recv(_CHUNK)
            except BlockingIOError:
                return
            except OSError:
                chunk = None
            if not chunk and other.failed:
                chunk = None  # the error was told to who sent, and is told once
            if not (chunk and self._caught(pair, way, chunk)):
                own.put(chunk, monotonic())
        self._pump(pair)

    def _caught(self, pair: Pair, way: Way, chunk: bytes) -> bool:
        for snare in list(self._snares):
            if snare.catches(pair, way, chunk):
                if snare.sprung.is_set():
                    self.disarm(snare)
                return True
        return False

    def _pump(self, pair: Pair) -> None:
        """Pass on what is due, and watch for what comes next."""
        if pair not in self.pairs:
            return
        try:
            for way, stream in pair.ways():
                stream.flush(self._in_force[way], monotonic())
        except ConnectionResetError:
            self._drop(pair, abort=True)
            return
        if pair.to.done and pair.back.done:
            self._drop(pair, abort=False)
            return
        (self._timed.discard if math.isinf(pair.due) else self._timed.add)(pair)
        for end, way, events in pair.wanted():
            before, pair.watched[end] = pair.watched[end], events
            if before != events:
                if before:
                    self._selector.unregister(end)
                if events:
                    self._selector.register(end, events, partial(self._serve, pair, way))

    def _drop(self, pair: Pair, *, abort: bool) -> None:
        if pair in self.pairs:
            self.pairs.remove(pair)
            self._timed.discard(pair)
            for end, events in pair.watched.items():
                if events:
                    self._selector.unregister(end)
            pair.close(abort=abort)
