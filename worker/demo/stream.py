"""Publishing at least once: every change, and some of them twice, the copy a little later."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from heapq import heappop, heappush
from time import monotonic
from typing import TYPE_CHECKING

from worker.codec import Codec
from worker.demo.handlers import app, event_of
from worker.publisher import Publisher

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from random import Random

    from worker.config import Settings
    from worker.demo.history import Change

#: A copy comes at most so many messages after the first one.
_LATEST = 300
#: Messages, and seconds, between two looks at the clock.
_BATCH = 200
_PAUSE = 0.02


def at_least_once(
    changes: Iterable[Change], share: float, random: Random
) -> Iterator[tuple[Change, bool]]:
    """Yield every change, and whether it is a copy; ``share`` of them come twice."""
    copies: list[tuple[int, int, Change]] = []
    for number, change in enumerate(changes):
        yield change, False
        if random.random() < share:
            heappush(copies, (number + random.randint(1, _LATEST), number, change))
        while copies and copies[0][0] <= number:
            yield heappop(copies)[2], True
    while copies:
        yield heappop(copies)[2], True


@dataclass(frozen=True, slots=True)
class Flow:
    """What to publish, and how."""

    #: Part of every event's id.
    repository: str
    #: The share of events that is published twice.
    duplicates: float
    #: Messages a second; None: as fast as the broker confirms them.
    rate: float | None


class Stream:
    """Publishes a history, in a thread of its own. Its numbers may be read by any other."""

    def __init__(
        self, changes: Sequence[Change], flow: Flow, settings: Settings, random: Random
    ) -> None:
        messages = list(at_least_once(changes, flow.duplicates, random))
        #: How many messages there are, copies included.
        self.size = len(messages)
        self._messages = iter(messages)
        self._flow = flow
        self._publisher = Publisher(Codec.of(app.name, settings), settings)
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
        self._ending = threading.Event()
        #: Messages that the broker confirmed, copies included, and how many of them are copies.
        self.published = 0
        self.copies = 0
        #: What ended it early.
        self.error: Exception | None = None

    @property
    def finished(self) -> bool:
        """Whether everything is published and confirmed."""
        return self._thread.ident is not None and not self._thread.is_alive() and not self.error

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, early if need be, and wait for it."""
        self._ending.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            began = monotonic()
            while self._some(began) and not self._ending.wait(self._pause):
                pass
        except Exception as error:  # noqa: BLE001 - told by the thread that waits for this one
            self.error = error
        finally:
            self._publisher.close()

    @property
    def _pause(self) -> float:
        return 0.0 if self._flow.rate is None else _PAUSE

    def _some(self, began: float) -> bool:
        """Publish what is due, until it is confirmed; tell whether there is more."""
        if self._flow.rate is None:
            due = _BATCH
        else:
            due = int((monotonic() - began) * self._flow.rate) - self.published
        sent = copies = 0
        more = True
        with self._publisher as out:
            while more and sent < due:
                message = next(self._messages, None)
                if message is None:
                    more = False
                else:
                    change, is_copy = message
                    out.publish(event_of(change, self._flow.repository))
                    sent += 1
                    copies += is_copy
        self.published += sent
        self.copies += copies
        return more
