"""What systemd is told: ready, reloading, stopping, alive (man page sd_notify(3)).

The protocol is one datagram of ``NAME=value`` lines to the socket in ``NOTIFY_SOCKET``; so much
needs no library. Without that variable nothing is sent.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Meant for the supervisor alone; its children do not get them.
VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")

#: Seconds that a stop may take past the drain: killing, reaping, exiting.
_STOP_MARGIN = 10.0


class Systemd:
    """Sends notifications; never blocks for long, never raises."""

    def __init__(self, environ: Mapping[str, str], pid: int) -> None:
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        #: Seconds between signs of life: half of what systemd allows. None if it wants none.
        self.interval = _watchdog(environ, pid) if self._address else None
        self._status = ""

    def ready(self) -> None:
        """All processes consume, at the start or again after a reload."""
        self._send("READY=1")

    def reloading(self) -> None:
        """The processes are being replaced."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, seconds: float) -> None:
        """The drain began and takes up to ``seconds``, also where the unit allows less."""
        self._send("STOPPING=1", f"EXTEND_TIMEOUT_USEC={int((seconds + _STOP_MARGIN) * 1e6)}")

    def alive(self) -> None:
        """Everything is well."""
        self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """Show ``text`` in ``systemctl status``; sent when it changed."""
        if text != self._status:
            self._status = text
            self._send(f"STATUS={text}")

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.settimeout(0.5)
            with suppress(OSError):  # systemd restarts, or its queue is full: the next one will do
                sock.sendto("\n".join(lines).encode(), self._address)


def _address(path: str) -> str:
    """Return the address of a path, where a leading ``@`` means the abstract namespace."""
    if path.startswith("@"):
        return "\0" + path[1:]
    return path if path.startswith("/") else ""


def _watchdog(environ: Mapping[str, str], pid: int) -> float | None:
    if environ.get("WATCHDOG_PID", str(pid)) != str(pid):
        return None
    try:
        microseconds = int(environ.get("WATCHDOG_USEC", "0"))
    except ValueError:
        return None
    return microseconds / 2e6 if microseconds > 0 else None


def without_notify(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for a child."""
    return {name: value for name, value in environ.items() if name not in VARIABLES}


def from_environment() -> Systemd:
    """Return the notifier of this process."""
    return Systemd(os.environ, os.getpid())
