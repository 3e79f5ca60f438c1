"""Parked keys: a key whose message could not be handled waits, with all its successors.

A parked message lies in the queue ``NAME.parked``, its key and the number of parked messages in
the dedup store, which is as durable as the ids. ``dlq replay --key`` sends the parked messages
back to the shard they came from, in order, with the header :data:`UNPARKED`, and after the last
one a marker of the name :data:`MARKER`. All of it passes through the one lane of the key, so at
the marker everything before it was handled; where nothing was parked in between, the key is set
free.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import time_ns
from typing import TYPE_CHECKING

from worker.errors import DedupUnavailable

if TYPE_CHECKING:
    from worker.dedup.base import DedupStore
    from worker.message import Message

#: Header of a message that comes back from the parked queue: it passes although its key is parked.
UNPARKED = "qw-unparked"
#: Header of the first message of a replay that goes to a queue.
FIRST = "qw-unparked-first"
#: Header that orders the parked messages of a key.
PLACE = "qw-parked-place"
#: Header that keeps the key of a parked message, which a foreign publisher may have nowhere else
#: but in the payload.
KEY = "qw-parked-key"
#: Name of the message that ends a replay of one key.
MARKER = "qw.unpark"


@dataclass(frozen=True, slots=True)
class Unpark:
    """A delivery that turned out to be the marker of a replay of ``key``."""

    key: str


class Parking:
    """The parked keys of one service, as this consumer knows them. I/O thread only.

    Only the consumer of a key's shard parks and frees it, so what was read from the store when
    the shard began to be delivered stays true while it is.
    """

    def __init__(self, store: DedupStore, service: str) -> None:
        self._store = store
        self._service = service
        self._keys: set[str] = set()
        #: The replay of a key that may pass: this process saw its first message, and nothing of the
        #: key was parked since.
        self._admitted: dict[str, str] = {}
        self._last_place = 0
        self._unsaved: list[tuple[str, int]] = []

    def load(self) -> None:
        """Read the parked keys. Raises DedupUnavailable."""
        unsaved = {key for key, _ in self._unsaved}
        self._keys = unsaved | set(self._store.parked(self._service))

    def __bool__(self) -> bool:
        return bool(self._keys)

    def holds(self, message: Message) -> bool:
        """Tell whether ``message`` must be set aside because its key is parked."""
        key = message.key
        if key is None or key not in self._keys:
            return False
        replay = message.headers.get(UNPARKED)
        return replay is None or self._admitted.get(key) != replay

    def admit(self, message: Message) -> None:
        """Let a replay pass, if ``message`` is its first, until something of the key is parked.

        Called once a message, when it arrives. A process that did not see the first one cannot
        know whether it was parked again; so it parks the others too, and the replay has to be
        repeated.
        """
        replay = message.headers.get(UNPARKED)
        if isinstance(replay, str) and message.headers.get(FIRST):
            self._admitted[str(message.key)] = replay

    def park(self, message: Message) -> None:
        """Park the key of ``message`` from now on."""
        key = str(message.key)
        self._keys.add(key)
        self._admitted.pop(key, None)
        self._unsaved.append((key, 0))

    def place(self, message: Message) -> str:
        """Return the header value that keeps the place of ``message`` among the parked.

        A message that is parked a second time keeps the place that it had: its successors were
        parked meanwhile.
        """
        had = message.headers.get(PLACE)
        if isinstance(had, str):
            return had
        self._last_place = max(self._last_place + 1, time_ns())
        return f"{self._last_place:020d}"

    def count(self, key: str) -> None:
        """Count a message of ``key`` that is confirmed to be in the parked queue."""
        self._unsaved.append((key, 1))

    def save(self) -> bool:
        """Write what changed; tell whether nothing is left to write."""
        while self._unsaved:
            key, change = self._unsaved[0]
            try:
                self._store.add_parked(self._service, key, change)
            except DedupUnavailable:
                return False
            del self._unsaved[0]
        return True

    def free(self, key: str) -> bool:
        """Set ``key`` free where nothing of it is parked any more. Raises DedupUnavailable."""
        if not self.save():
            raise DedupUnavailable("what was parked is not written yet")
        if key not in self._keys:
            return True
        if not self._store.unpark(self._service, key):
            return False
        self._keys.discard(key)
        self._admitted.pop(key, None)
        return True
