"""The place in the archive before which everything is that was published until now.

The archive lags behind: what was published may wait in its queues, or in its lanes, where that of a
later delivery may be stored before that of an earlier one. So barriers (:mod:`worker.barrier`) are
sent into its queues, and each is noted in the archive when all before it in its queue is stored:

1. into each relay queue; when they are noted, what came there has been passed on to the shards;
2. into each shard's queue; when they are noted, what came to the shards is stored.

All queues of all generations that the broker has get them, so it does not matter whether the number
of the archive's shards is being changed. Places rise in the order of commits, so all of that has a
place up to the highest one at the moment at which the last barrier was found noted.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import TYPE_CHECKING, Self

from worker.archive.selection import Selection
from worker.archive.service import ARCHIVE, MARKS
from worker.barrier import barrier
from worker.codec import Codec
from worker.errors import Unroutable, UsageError
from worker.ids import new_id, time_of_id
from worker.inspector import Inspector
from worker.topology import relay_queue, shard_queue
from worker.transport.capabilities import connect
from worker.transport.outbound import Outbound

if TYPE_CHECKING:
    from worker.archive.base import Archive
    from worker.config import Settings

#: How many numbers of generations in a row may be missing before no more is looked for.
_GAP = 128


#: The age of a mark that nobody waits for any more: whoever did has died.
_LEFT = timedelta(days=1)


class Horizon:
    """Looks for one horizon. A context manager, for one thread.

    Raises BrokerUnreachable, PublishError and ArchiveUnavailable; then another can be made.
    """

    def __init__(self, archive: Archive, settings: Settings) -> None:
        """Send the first barriers. Raises UsageError where the broker has no archive's queues."""
        self._archive = archive
        self._settings = settings
        self._codec = Codec.of(ARCHIVE, settings)
        self._id = new_id()
        #: The queues whose barriers are not sent yet, and what is to be noted of those that are.
        self._later: list[str] = []
        self._expected: set[str] = set()
        connection = connect(
            settings.broker,
            heartbeat=settings.heartbeat,
            timeout=settings.connect_timeout,
            name=f"qworker {ARCHIVE} horizon {os.getpid()}",
        )
        self._outbound = Outbound(connection, settings.broker)
        try:
            relays, self._later = self._queues()
            self._send(relays)
        except BaseException:
            self._outbound.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connection."""
        self._outbound.close()

    def reached(self) -> int | None:
        """Return the place; None while it is not known. Sends what is to be sent next."""
        noted = self._archive.documents(f"{MARKS}{self._id}/")
        if not self._expected.issubset(noted):
            self._outbound.pump()
            self._outbound.keep_alive()
            return None
        if self._later:
            later, self._later = self._later, []
            self._send(later)
            return None
        _, place = self._archive.span(Selection())
        for name, document in self._archive.documents(MARKS).items():
            if name in noted or _is_left(name):
                self._archive.write(name, document.version, "")
        return place

    def _send(self, queues: list[str]) -> None:
        messages = [barrier(self._codec, f"{self._id}/{queue}", queue) for queue in queues]
        errors = self._outbound.deliver(messages, self._settings.confirm_timeout)
        for queue, error in zip(queues, errors, strict=True):
            if error is None:
                self._expected.add(f"{MARKS}{self._id}/{queue}")
            elif not isinstance(error, Unroutable):  # one that was removed meanwhile has nothing
                raise error

    def _queues(self) -> tuple[list[str], list[str]]:
        """Return the relay queues and the shard queues that the broker has of the archive."""
        relays, shards = [], []
        number, last = 1, _GAP
        with Inspector(ARCHIVE, self._settings) as inspector:
            while number <= last:
                for shard in count():
                    queue = shard_queue(ARCHIVE, number, shard)
                    if inspector.depth(queue) is None:
                        break
                    shards.append(queue)
                    last = number + _GAP
                if inspector.depth(relay := relay_queue(ARCHIVE, number)) is not None:
                    relays.append(relay)
                number += 1
        if not shards:
            raise UsageError(
                "the archive never ran on this broker, so it has nothing of what is published:"
                " start it first ('qworker archive start')"
            )
        return relays, shards


def _is_left(mark: str) -> bool:
    """Tell whether a mark is of a horizon that nobody looks for any more."""
    began = time_of_id(mark.removeprefix(MARKS).partition("/")[0])
    return began is not None and datetime.now(UTC) - began > _LEFT
