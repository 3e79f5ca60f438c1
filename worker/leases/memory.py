"""Leases in this process's memory, for a service that lives in one process, and for tests."""

from __future__ import annotations

import time
from threading import Lock
from typing import TYPE_CHECKING

from worker.errors import ConfigurationError
from worker.leases.base import LeaseStore, check_text
from worker.leases.rules import Book

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.leases.base import LeaseOptions, Sync, View

_SCHEME = "memory://"


class MemoryLeases(LeaseStore):
    """Leases of ``memory://NAME``, known to whoever has this object; any thread may call it.

    ``clock`` is for tests.
    """

    reach = "memory: known to this process alone"

    def __init__(self, options: LeaseOptions, clock: Callable[[], float] = time.monotonic) -> None:
        self._options = options
        self._clock = clock
        self._lock = Lock()
        self._books: dict[str, Book] = {}

    @classmethod
    def open(cls, url: str, options: LeaseOptions) -> MemoryLeases:
        """Open ``memory://NAME``. Raises ConfigurationError."""
        name = url.removeprefix(_SCHEME)
        if name == url or "?" in name:
            raise ConfigurationError(f"lease URL {url!r}: write memory://NAME")
        return cls(options)

    def sync(self, service: str, sync: Sync) -> View:
        """Apply ``sync`` and return what is known after it."""
        check_text(sync.facts, "a member's facts")
        with self._lock:
            book = self._books.setdefault(service, Book())
            floor = time.time_ns() // 1_000_000
            return book.sync(sync, self._options, now=self._clock(), floor=floor)

    def look(self, service: str) -> View:
        """Return what is known."""
        with self._lock:
            return self._books.get(service, Book()).view()

    def write(self, service: str, name: str, version: int, text: str) -> bool:
        """Change a document by compare-and-set."""
        check_text(text, f"the document {name}")
        with self._lock:
            return self._books.setdefault(service, Book()).write(name, version, text)

    def close(self) -> None:
        """Nothing is open."""
