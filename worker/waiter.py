"""What to sleep on: a descriptor, or a consumer's many and a pipe by which any thread wakes it."""

from __future__ import annotations

import os
import selectors
from contextlib import suppress
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_POLL = 0.005
#: Seconds between two looks at what no descriptor tells of: soon after something was there, and
#: after a while of nothing.
_SHORTEST_POLL, _LONGEST_POLL = 0.001, 0.02
_GROWTH = 1.5


def wait_readable(descriptor: int | None, seconds: float = 0.1) -> None:
    """Wait until there may be something to read; a broker without a descriptor is polled."""
    if descriptor is None:
        sleep(_POLL)
        return
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        selector.select(seconds)


class Waiter:
    """A selector and a wake-up pipe. One thread calls all of it but :meth:`wake`."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._wake_in, self._wake_out = os.pipe()
        os.set_blocking(self._wake_in, False)
        os.set_blocking(self._wake_out, False)
        self.watch(self._wake_in, self._empty_pipe)
        self._sleeping = False
        self._followed: list[int] = []
        self._pause = _SHORTEST_POLL

    def watch(self, fileobj: Any, callback: Callable[[], None]) -> None:
        """Call ``callback`` in :meth:`wait` whenever ``fileobj`` is readable."""
        self._selector.register(fileobj, selectors.EVENT_READ, callback)

    def unwatch(self, fileobj: Any) -> None:
        """No longer watch ``fileobj``."""
        self._selector.unregister(fileobj)

    def follow(self, descriptors: Iterable[int]) -> None:
        """Be woken by ``descriptors`` too, in place of those that were followed before."""
        for number in self._followed:
            with suppress(KeyError, ValueError, OSError):  # it may have gone with its connection
                self._selector.unregister(number)
        self._followed = list(descriptors)
        for number in self._followed:
            self._selector.register(number, selectors.EVENT_READ, None)

    def wait(self, timeout: float, ready: Callable[[], bool]) -> bool:
        """Sleep for at most ``timeout`` seconds, or not at all where ``ready`` says so.

        Tells whether a descriptor ended it.
        """
        self._sleeping = True
        # What becomes ready from here on finds the flag set and writes to the pipe.
        readable = self._selector.select(0.0 if ready() else max(0.0, timeout))
        for key, _ in readable:
            if key.data is not None:
                key.data()
        self._sleeping = False
        return bool(readable)

    def poll(self, timeout: float, ready: Callable[[], bool], look: Callable[[], bool]) -> None:
        """As :meth:`wait`, and no longer than until ``look`` finds something.

        It is asked some times a second, less often as time goes by without a call of :meth:`hurry`.
        """
        until = monotonic() + timeout
        while True:
            left, pause = until - monotonic(), self._pause
            woken = self.wait(min(left, pause), ready)
            self._pause = min(pause * _GROWTH, _LONGEST_POLL)
            if woken or left <= pause or ready() or look():
                return

    def hurry(self) -> None:
        """Look again soon: something was there."""
        self._pause = _SHORTEST_POLL

    def wake(self) -> None:
        """End the sleep; any thread may call it, and most calls cost one comparison."""
        if self._sleeping:
            self._sleeping = False
            with suppress(OSError):  # the pipe is full: it is awake; or closed: it has ended
                os.write(self._wake_out, b"\0")

    def close(self) -> None:
        """Release the descriptors."""
        self._selector.close()
        os.close(self._wake_in)
        os.close(self._wake_out)

    def _empty_pipe(self) -> None:
        with suppress(BlockingIOError):
            os.read(self._wake_in, 4096)
