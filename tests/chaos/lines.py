"""A raw connection to Redis: what came, and what did not, is not smoothed over by a client."""

from __future__ import annotations

import socket
from typing import Self
from urllib.parse import urlsplit

_PATIENCE = 30.0


class Line:
    """Speaks to the database of ``url`` in words (Redis's inline commands). A context manager."""

    def __init__(self, url: str) -> None:
        place = urlsplit(url)
        assert place.port
        self._socket = socket.create_connection(("127.0.0.1", place.port), _PATIENCE)
        self._database = place.path[1:]

    def __enter__(self) -> Self:
        if self._database:
            assert self.ask(f"SELECT {self._database}") == "+OK"
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def ask(self, command: str) -> str:
        """Send a command; return the answer, of one line."""
        self.say(command)
        return self.hear()

    def say(self, command: str) -> None:
        """Send a command and leave it at that."""
        self._socket.sendall(command.encode() + b"\r\n")

    def hear(self) -> str:
        """Return the next line that comes; empty: the server has closed. Raises OSError."""
        heard = b""
        while not heard.endswith(b"\r\n") and (more := self._socket.recv(1)):
            heard += more
        return heard.decode().strip()

    def close(self) -> None:
        """Close it in good order."""
        self._socket.close()
