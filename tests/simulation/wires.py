"""What processes hear each other by: pipes whose words are late, signals; nobody ever waits."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any, Self

from worker.supervisor.control import Message
from worker.supervisor.pipe import ControlClosed

#: Seconds that a word may be on its way; most are there at once.
_LATENCIES = (0.0, 0.0, 0.0, 0.0, 0.0, 0.01, 0.1, 0.4)


class End:
    """One end of a control pipe. Takes the part of ``worker.supervisor.pipe.Channel``."""

    def __init__(self, clock: Callable[[], float], random: Random) -> None:
        self.peer: End | None = None
        self._clock = clock
        self._random = random
        self._coming: deque[tuple[float, Message]] = deque()
        self._latest = 0.0
        #: This end is closed, by its owner or because everything of a closed peer was heard.
        self.closed = False
        self.pending = False

    @classmethod
    def pair(cls, clock: Callable[[], float], random: Random) -> tuple[End, End]:
        ours, theirs = cls(clock, random), cls(clock, random)
        ours.peer, theirs.peer = theirs, ours
        return ours, theirs

    def fileno(self) -> int:
        return 0

    def send(self, message: Message) -> None:
        if not self.closed and self.peer is not None and not self.peer.closed:
            self.peer._arrive(message)

    def flush(self, timeout: float = 0.0) -> None:
        """Nothing waits to be written."""

    @property
    def readable(self) -> bool:
        if self._coming:
            return self._coming[0][0] <= self._clock()
        return not self.closed and self.peer is not None and self.peer.closed

    def receive(self) -> list[Message]:
        found = []
        while self._coming and self._coming[0][0] <= self._clock():
            found.append(self._coming.popleft()[1])
        self._notice_end()
        return found

    def next(self) -> Message | None:
        if self._coming and self._coming[0][0] <= self._clock():
            return self._coming.popleft()[1]
        self._notice_end()
        if self.closed:
            raise ControlClosed("the other end of the control pipe is closed")
        return None

    def close(self) -> None:
        self.closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        """A parent closes its copy of its child's end; the child has its own."""

    def _arrive(self, message: Message) -> None:
        self._latest = max(self._latest, self._clock() + self._random.choice(_LATENCIES))
        self._coming.append((self._latest, message))

    def _notice_end(self) -> None:
        if not self._coming and self.peer is not None and self.peer.closed:
            self.closed = True


class Signals:
    """Takes the part of ``worker.supervisor.signals.Signals``."""

    def __init__(self) -> None:
        self._noted: deque[int] = deque()
        self.readable = False

    def fileno(self) -> int:
        return 0

    @contextmanager
    def noted(self, wanted: Iterable[int]) -> Iterator[None]:
        yield

    def take(self) -> list[int]:
        taken, self.readable = [*self._noted], False
        self._noted.clear()
        return taken

    def send(self, number: int) -> None:
        self._noted.append(number)
        self.readable = True

    def wake(self) -> None:
        self.readable = True

    def close(self) -> None:
        """Nothing is open."""


class Waiter:
    """Takes the part of ``worker.waiter.Waiter``: tells who has something to read, at once."""

    def __init__(self) -> None:
        self._watched: dict[Any, Callable[[], None]] = {}

    def watch(self, fileobj: Any, callback: Callable[[], None]) -> None:
        self._watched[fileobj] = callback

    def unwatch(self, fileobj: Any) -> None:
        del self._watched[fileobj]

    def follow(self, descriptors: Iterable[int]) -> None:
        """The broker has no descriptors."""

    def wait(self, timeout: float, ready: Callable[[], bool]) -> None:
        for fileobj, callback in [*self._watched.items()]:
            if fileobj.readable:
                callback()

    def poll(self, timeout: float, ready: Callable[[], bool], look: Callable[[], bool]) -> None:
        self.wait(timeout, ready)

    def hurry(self) -> None:
        """Nobody sleeps."""

    def wake(self) -> None:
        """Nobody sleeps."""

    def close(self) -> None:
        """Nothing is open."""


class Selector:
    """Takes the part of a selector: nobody sleeps, and whoever asks looks everywhere."""

    def get_map(self) -> dict[int, Any]:
        return {}

    def register(self, fileobj: Any, events: int) -> None:
        """Everything is looked at in each round."""

    def unregister(self, fileobj: Any) -> None:
        """Nothing is registered."""

    def select(self, timeout: float | None = None) -> list[Any]:
        return []

    def close(self) -> None:
        """Nothing is open."""


class Reporter:
    """Takes the part of ``worker.supervisor.reporter.Reporter``: nobody is told."""

    interval = 1.0

    def __init__(self) -> None:
        self.systemd = self

    def tell(self, *_: object) -> None:
        """Nobody asks."""

    open = ready = reloading = stopping = status = alive = close = tell
