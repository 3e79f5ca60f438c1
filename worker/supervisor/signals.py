"""Signals as a queue: handlers note the signal and wake the loop, nothing more."""

from __future__ import annotations

import os
import signal
import socket
import stat
from collections import deque
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import FrameType

#: What people and service managers send to a supervisor.
ASKED = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGUSR1,
)


def hold() -> None:
    """Let the kernel keep what is asked of this thread, until ``release`` or ``Signals.noted``."""
    signal.pthread_sigmask(signal.SIG_BLOCK, ASKED)


def release() -> None:
    """Take what was held, as if it came now."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKED)


class Signals:
    """Collects signals for a loop that waits with a selector. Made in the main thread."""

    def __init__(self) -> None:
        self._wake, self._waker = socket.socketpair()
        self._wake.setblocking(False)
        self._waker.setblocking(False)
        self._noted: deque[int] = deque()

    def fileno(self) -> int:
        """Return a descriptor that is readable while signals, or wake-ups, wait."""
        return self._wake.fileno()

    @contextmanager
    def noted(self, wanted: Iterable[int]) -> Iterator[None]:
        """Queue these signals while the block runs; then put back what was before.

        What was held until now comes first. Where they were held, they are so again at the end.
        """
        wanted = [*wanted]
        before = {number: signal.signal(number, self._note) for number in wanted}
        descriptor = signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, wanted)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            signal.set_wakeup_fd(descriptor)
            for number, handler in before.items():
                signal.signal(number, handler)

    def take(self) -> list[int]:
        """Return the signals that came since the last call, in their order."""
        with suppress(BlockingIOError):
            while self._wake.recv(4096):
                pass
        taken = []
        while self._noted:
            taken.append(self._noted.popleft())
        return taken

    def send(self, number: int) -> None:
        """Queue ``number`` as if this signal had come. May be called in any thread."""
        self._noted.append(number)
        self.wake()

    def wake(self) -> None:
        """Wake the loop. May be called in any thread."""
        with suppress(OSError):  # full of wake-ups that nobody took yet; or closed
            self._waker.send(b"\0")

    def close(self) -> None:
        """Close the descriptors."""
        self._wake.close()
        self._waker.close()

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._noted.append(number)


def leave_terminal() -> None:
    """Write to nowhere what would go to a terminal that is gone.

    What Python could not write by its end would make the exit code 120.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        if stat.S_ISCHR(os.fstat(stream).st_mode):
            os.dup2(nowhere, stream)
    os.close(nowhere)
