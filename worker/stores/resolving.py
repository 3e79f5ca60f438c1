"""Finds the addresses of servers' names, and waits no longer for them than it may.

The system's look-up takes as long as it likes: half a minute, where the name servers are away. So a
thread beside makes it, which may be left behind; and a name that cannot be looked up now has the
addresses that it had last. Their connections go on with the name: certificates are checked by it.
"""

from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

#: Of the time that a name without an address may take, that which others are waited for.
_SHARE_OF_KNOWN = 0.25


class Names:
    """The names of one server, or of those that take over from each other; for one thread."""

    def __init__(self) -> None:
        self._known: dict[str, list[str]] = {}
        self._sought: dict[str, Future[list[str]]] = {}

    def find(self, names: Iterable[str], seconds: float) -> Mapping[str, list[str]]:
        """Return the addresses of those that can be had within ``seconds``.

        Raises OSError where that is none: what is wrong with the last.
        """
        names, began = list(dict.fromkeys(names)), time.monotonic()
        wrong: Exception = TimeoutError("no names")
        for name in names:
            self._seek(name)
        found = {}
        for name in names:
            share = _SHARE_OF_KNOWN if name in self._known else 1.0
            left = max(0.0, began + seconds * share - time.monotonic())
            try:
                found[name] = self._await(name, left)
            except (OSError, UnicodeError) as error:  # it may not even be a name
                wrong = error
        if not found:
            raise OSError(f"failed to resolve host {names[-1]!r}: {wrong}") from None
        return found

    def _seek(self, name: str) -> None:
        """Begin to look it up, unless that is still going on."""
        sought = self._sought.get(name)
        if sought is not None:
            if not sought.done():
                return
            # It came too late for whoever asked, and may be old by now.
            if sought.exception() is None:
                self._known[name] = sought.result()
        self._sought[name] = sought = Future()
        threading.Thread(
            target=_look_up, args=(name, sought), name=f"look up {name}", daemon=True
        ).start()

    def _await(self, name: str, seconds: float) -> list[str]:
        try:
            self._known[name] = self._sought[name].result(seconds)
        except socket.gaierror as error:
            if error.errno != socket.EAI_AGAIN or name not in self._known:
                self._known.pop(name, None)  # there is no such name any more
                raise
        except TimeoutError:
            if name not in self._known:
                raise TimeoutError("the name servers do not answer") from None
        return self._known[name]


def _look_up(name: str, sought: Future[list[str]]) -> None:
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    except Exception as error:  # noqa: BLE001 - whoever waits for it has to know
        sought.set_exception(error)
    else:
        sought.set_result([str(address[0]) for *_, address in found])
