"""Which keys are parked, by what lies in the parked queue: for a dedup store that has forgotten it.

The queue is read on a connection of its own, in a thread, since it may be long and the I/O thread
has heartbeats to send. One reader at a time sees all of it: what another one holds is not seen. So
where somebody else was reading as it was opened, or not all of it came, it is read again later.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from worker.codec import Codec
from worker.deadletters import Box
from worker.errors import QworkerError
from worker.topology import parked_queue

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from worker.config import Settings
    from worker.link import Link

logger = logging.getLogger("worker")


class Inventory:
    """Reads the parked queue of one service. I/O thread only, but for the reading itself.

    ``wake`` is called from the reading thread once it is through.
    """

    def __init__(
        self, service: str, settings: Settings, link: Link, wake: Callable[[], None]
    ) -> None:
        self._service = service
        self._settings = settings
        self._link = link
        self._wake = wake
        self._thread: threading.Thread | None = None
        self._found: Mapping[str, int] | None = None
        #: The log says that somebody else is reading; once for each time.
        self._has_told = False

    @property
    def is_reading(self) -> bool:
        """Whether the queue is being read."""
        return self._thread is not None and self._thread.is_alive()

    def take(self) -> Mapping[str, int] | None:
        """Return each key of which something lies in the queue, with its last place there.

        None where that is not known: it is being read from now on. Raises BrokerUnreachable.
        """
        if self.is_reading:
            return None
        found, self._found, self._thread = self._found, None, None
        if found is not None:
            return found
        if self._link.is_untouched(parked_queue(self._service)):
            return {}
        self._thread = threading.Thread(target=self._read, name="inventory", daemon=True)
        self._thread.start()
        return None

    def _read(self) -> None:
        try:
            self._found = lying_keys(self._service, self._settings)
            if self._found is None and not self._has_told:
                logger.warning("nothing begins while somebody else reads the parked queue")
            self._has_told = self._found is None
        except QworkerError as error:
            logger.warning("the parked queue cannot be read, so nothing begins: %s", error)
        except Exception:
            logger.exception("the parked queue cannot be read, so nothing begins")
        finally:
            self._wake()


def lying_keys(service: str, settings: Settings) -> Mapping[str, int] | None:
    """Return each key of which something is parked, with its last place; None where unsure.

    Raises BrokerUnreachable, and NoSuchQueue where the service has no parked queue.
    """
    places: dict[str, int] = {}
    with Box(parked_queue(service), Codec.of(service, settings), settings) as box:
        if box.readers:
            return None
        for letter in box.read():
            if letter.key is not None:
                place = int(letter.place) if letter.place.isdecimal() else 0
                places[letter.key] = max(place, places.get(letter.key, 0))
        unread = box.unread
    if box.is_shared:
        return None
    if unread:
        logger.error(
            "the dedup store has forgotten which keys are parked, and more is parked than can be"
            " looked at: of %d messages the keys of the last %d are not known, and what comes of"
            " them is not parked behind them; 'qworker dlq list --parked' shows them",
            box.depth,
            unread,
        )
    return places
