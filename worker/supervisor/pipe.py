"""One end of the control pipe: messages in and out, never blocking."""

from __future__ import annotations

import select
import time
from collections import deque
from typing import TYPE_CHECKING

from worker.errors import QworkerError
from worker.supervisor.control import MAX_LINE, ControlError, decode, encode

if TYPE_CHECKING:
    import socket

    from worker.supervisor.control import Message

_MAX_OUTGOING = 4 * MAX_LINE


class ControlClosed(QworkerError):
    """The peer is gone."""


class Channel:
    """One end of the pipe. Owns the socket; used by one thread."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._incoming = bytearray()
        self._outgoing = bytearray()
        self._messages: deque[Message] = deque()
        #: The peer is gone, or no longer reads. What had arrived before can still be received.
        self.closed = False

    def fileno(self) -> int:
        """Return the file descriptor, for selectors."""
        return self._socket.fileno()

    @property
    def pending(self) -> bool:
        """Whether something waits until the peer reads."""
        return bool(self._outgoing) and not self.closed

    def send(self, message: Message) -> None:
        """Queue ``message`` and write what the peer takes now. Never blocks.

        A peer that is gone is no error here: its end of the stream tells. Raises ControlError for
        a message that is too long.
        """
        self._outgoing += encode(message)
        self.flush()

    def flush(self, timeout: float = 0.0) -> None:
        """Write what is queued; wait for the peer to read for at most ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        while self.pending:
            try:
                del self._outgoing[: self._socket.send(self._outgoing)]
            except BlockingIOError:
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                select.select([], [self._socket], [], left)
            except OSError:
                self.closed = True
        if len(self._outgoing) > _MAX_OUTGOING:
            self.closed = True

    def receive(self) -> list[Message]:
        """Return every message that is there, without blocking. Raises ControlError."""
        self._read()
        messages = list(self._messages)
        self._messages.clear()
        return messages

    def next(self) -> Message | None:
        """Return the next message, or None if none is there. Raises ControlError, ControlClosed."""
        self._read()
        if self._messages:
            return self._messages.popleft()
        if self.closed:
            raise ControlClosed("the other end of the control pipe is closed")
        return None

    def close(self) -> None:
        """Close the socket."""
        self.closed = True
        self._socket.close()

    def _read(self) -> None:
        while not self.closed:
            try:
                chunk = self._socket.recv(1 << 16)
            except BlockingIOError:
                return
            except OSError:
                chunk = b""
            if not chunk:
                self.closed = True
                return
            self._incoming += chunk
            *lines, rest = self._incoming.split(b"\n")
            self._incoming = rest
            if len(rest) > MAX_LINE:
                self.closed = True
                raise ControlError(f"a line of more than {MAX_LINE} bytes")
            self._messages.extend(decode(bytes(line)) for line in lines)
