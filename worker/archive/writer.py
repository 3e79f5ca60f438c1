"""One thread that stores what comes: all that waits at a time is one transaction.

A handler awaits the commit of its event. So an event is acknowledged after it is stored, and as the
handler of a key's next event begins after that, places in the archive rise with each key.

While the database is away everything waits, and nothing fails: a retry through the broker would
bring events back behind others, and there is no event that another attempt would make any better.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from worker.archive.entry import Entry
from worker.errors import QworkerError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from worker.archive.base import Archive

logger = logging.getLogger("worker.archive")

#: Events of one transaction; and what they may hold, so that memory and locks stay small.
_MOST, _MOST_BYTES = 1000, 4 * 1024 * 1024
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0
#: Seconds that the end waits for what is under way.
_PARTING = 2.0
#: Events that are removed at a time, and the seconds after which it is looked again.
_TRIMMED, _TRIM_EVERY = 1000, 60.0
_FAILED = "the archive failed, and tries again"
_KEPT = "what is too old is not removed"


class Mark(NamedTuple):
    """A document that is to be there, also where it was there before."""

    name: str
    text: str


class _Waiting(NamedTuple):
    """What is to be stored, and who waits for that."""

    what: Entry | Mark
    done: asyncio.Future[None]


class Writer:
    """Stores for the coroutines of one event loop at a time. ``retention``: seconds, 0 for ever."""

    def __init__(
        self, archive: Archive, retention: float = 0.0, clock: Callable[[], float] = time.time
    ) -> None:
        self._archive = archive
        self._retention = retention
        self._clock = clock
        self._waiting: list[_Waiting] = []
        self._something = threading.Condition()
        self._closed = False
        self._trim_at = 0.0
        self._away = False
        #: The last error that nobody foresaw, by what it was met in: its traceback is in the log.
        self._unforeseen: dict[str, str] = {}
        self._thread = threading.Thread(target=self._work, name="archive-writer", daemon=True)
        self._thread.start()

    async def store(self, what: Entry | Mark) -> None:
        """Return when ``what`` is stored."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        with self._something:
            self._waiting.append(_Waiting(what, done))
            if len(self._waiting) == 1:
                self._something.notify()
        await done

    def close(self) -> None:
        """Store nothing more; what waits is not stored, and its handlers are about to end.

        A database that hangs is not waited for: what is under way there is stored, or not, and is
        not acknowledged.
        """
        with self._something:
            self._closed = True
            self._something.notify()
        self._thread.join(_PARTING)
        if not self._thread.is_alive():
            self._archive.close()

    def _work(self) -> None:
        while True:
            batch = self._next()
            if self._closed:
                return
            if batch:
                self._store(batch)
            if self._retention and time.monotonic() >= self._trim_at:
                self._trim()

    def _next(self) -> list[_Waiting]:
        """Wait for work, or until it is time to look at what is too old; return the work."""
        with self._something:
            if not self._waiting and not self._closed:
                left = max(0.0, self._trim_at - time.monotonic())
                self._something.wait(left if self._retention else None)
            size = number = 0
            for waiting in self._waiting[:_MOST]:
                number += 1
                size += len(waiting.what.body) if isinstance(waiting.what, Entry) else 0
                if size > _MOST_BYTES:
                    break
            batch, self._waiting = self._waiting[:number], self._waiting[number:]
        return batch

    def _store(self, batch: Sequence[_Waiting]) -> None:
        """Store a batch, however long that takes; tell those who wait for it."""
        pause = _FIRST_PAUSE
        while not self._closed:
            try:
                self._write(batch)
            except QworkerError as error:
                if not self._away:
                    logger.warning("nothing is archived until this is mended: %s", error)
                self._away = True
            except Exception as error:  # noqa: BLE001 - the last one to be asked
                self._tell_unforeseen(_FAILED, error)
                self._away = True
            else:
                break
            with self._something:
                if not self._closed:
                    self._something.wait(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        else:
            return
        if self._away:
            logger.info("the archive is back")
        self._away = False
        self._unforeseen.pop(_FAILED, None)
        loop = batch[0].done.get_loop()
        loop.call_soon_threadsafe(_tell, [waiting.done for waiting in batch])

    def _write(self, batch: Sequence[_Waiting]) -> None:
        self._archive.add([each.what for each in batch if isinstance(each.what, Entry)])
        for each in batch:
            if isinstance(each.what, Mark):
                self._archive.write(each.what.name, 0, each.what.text)

    def _trim(self) -> None:
        """Remove some of what is too old; soon again where there may be more."""
        removed = 0
        try:
            before = int((self._clock() - self._retention) * 1_000_000)
            removed = self._archive.trim(before, _TRIMMED)
        except QworkerError as error:
            logger.warning("%s: %s", _KEPT, error)
        except Exception as error:  # noqa: BLE001 - the last one to be asked
            self._tell_unforeseen(_KEPT, error)
        self._trim_at = time.monotonic() + (0.0 if removed >= _TRIMMED else _TRIM_EVERY)

    def _tell_unforeseen(self, what: str, error: Exception) -> None:
        """Log an error with its traceback; in one line where the same one comes again."""
        told = repr(error)
        is_known = self._unforeseen.get(what) == told
        self._unforeseen[what] = told
        if is_known:
            logger.error("%s, as before: %s", what, told)
        else:
            logger.error("%s; nobody foresaw this: %s", what, told, exc_info=error)


def _tell(futures: Sequence[asyncio.Future[None]]) -> None:
    for done in futures:
        if not done.done():  # its handler was cancelled
            done.set_result(None)
