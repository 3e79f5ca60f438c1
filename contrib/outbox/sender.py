"""Sends what this process has committed, at once, in a thread of its own.

A commit is told by :meth:`Sender.wake`, which costs the caller microseconds and never fails. The
thread then sends the lanes of those rows by the rules of the package. A lane whose oldest row is
another process's is left to that one, which sends what stands behind its own row too, and looks
again once it has removed it. So no row waits for the relay because two processes write to its key.
(Where they do so at the same time, one that is written in between is sent by both now and then.)

What cannot be sent now (the broker or the database is away, the process ends) is left to the relay.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import weakref
from time import monotonic
from typing import TYPE_CHECKING

from worker.contrib.outbox.rows import Bounds
from worker.contrib.outbox.shipping import released, ship

from worker import QworkerError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from contrib.outbox.rows import Entry, OutboxStore
    from worker import App

logger = logging.getLogger("worker.outbox")

#: Lanes that are looked at together, and rows that are read of them.
_LANES, _ROWS = 200, 200
#: Seconds for which a row beyond the horizon is waited for; between two looks at it, at first and
#: at most.
_PATIENCE, _PAUSE, _LONGEST_PAUSE = 1.0, 0.005, 0.2

#: Lanes, with the ids of our rows in them; None: all of the lane is ours to send.
_Lanes = dict[str, set[str] | None]

#: Every sender of the process: no thread of it is there after a fork.
_living: weakref.WeakSet[Sender] = weakref.WeakSet()


def _forked() -> None:
    for sender in [*_living]:
        sender.forked()


os.register_at_fork(after_in_child=_forked)


class Sender:
    """Sends rows that were committed. Any thread may call it."""

    def __init__(self, app: App, store: OutboxStore) -> None:
        self._app = app
        self._store = store
        #: Since when a lane is held by the horizon.
        self._held: dict[str, float] = {}
        self._pause = _PAUSE
        #: What failed last; told once.
        self._trouble = ""
        self.forked()
        _living.add(self)

    def forked(self) -> None:
        """Begin anew in the child; what was committed before is the parent's."""
        self._lock = threading.Lock()
        self._runs = False
        self._noted: queue.SimpleQueue[_Lanes] = queue.SimpleQueue()
        self._idle = threading.Event()
        self._idle.set()

    def wake(self, rows: Iterable[Mapping[str, object]]) -> None:
        """Send these rows (their columns), which are committed now."""
        lanes: _Lanes = {}
        for row in rows:
            _add(lanes, str(row["lane"]), {str(row["message_id"])})
        with self._lock:
            self._idle.clear()
            self._noted.put(lanes)
            if not self._runs:
                thread = threading.Thread(target=self._run, name="qworker-outbox", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:  # at the end of the interpreter, say
                    self._tell(error)
                else:
                    self._runs = True

    def flush(self, timeout: float) -> bool:
        """Wait until all that was committed is sent, or left to the relay; tell whether it is."""
        return self._idle.wait(timeout)

    def _run(self) -> None:
        lanes: _Lanes = {}
        while True:
            self._take(lanes)
            some = {lane: lanes.pop(lane) for lane in [*lanes][:_LANES]}
            try:
                again = self._round(some)
            except Exception as error:  # noqa: BLE001 - the rows are there, and the relay finds them
                self._tell(error)
                lanes.clear()  # else they would pile up; what was noted meanwhile is the next try
                self._held.clear()
                continue
            for lane, ids in again.items():
                _add(lanes, lane, ids)

    def _take(self, lanes: _Lanes) -> None:
        """Add what was committed meanwhile; wait for it, where there is nothing else to do."""
        with self._lock:
            if not lanes and self._noted.empty():
                self._idle.set()
        while not lanes or not self._noted.empty():
            for lane, ids in self._noted.get().items():
                _add(lanes, lane, ids)

    def _round(self, lanes: _Lanes) -> _Lanes:
        """Send what may be sent of these lanes; return those to look at again."""
        horizon = self._store.horizon()
        entries = self._store.read(_ROWS, Bounds(lanes=lanes))
        oldest: dict[str, Entry] = {}
        for entry in entries:
            oldest.setdefault(entry.lane, entry)
        own = {
            lane
            for lane, entry in oldest.items()
            if (ids := lanes[lane]) is None or entry.message_id in ids
        }
        stopped: set[str] = set()
        ready = released([e for e in entries if e.lane in own], horizon, stopped)
        shipment = ship(self._app, ready, lambda: True)
        if shipment.sent:
            self._store.remove(shipment.sent)
        if shipment.trouble is not None:
            raise shipment.trouble
        self._trouble = ""
        again = {lane: lanes[lane] for lane in self._still_held(lanes, stopped)}
        if not again:
            self._pause = _PAUSE
        elif not ready:
            self._rest()
        if len(entries) == _ROWS:
            again |= {lane: ids for lane, ids in lanes.items() if lane not in oldest}
        # Who saw our row as the oldest of a lane has left its own, behind it, to us.
        sent = {*shipment.sent}
        return again | {entry.lane: None for entry in ready if entry.sequence in sent}

    def _rest(self) -> None:
        """Wait for the next commit, or else for a pause, which grows: a look costs the database."""
        try:
            self._noted.put(self._noted.get(timeout=self._pause))
        except queue.Empty:
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def _still_held(self, lanes: _Lanes, stopped: set[str]) -> list[str]:
        """Return the lanes that the horizon holds, but not those that it has held for too long."""
        now = monotonic()
        for lane in lanes:
            if lane not in stopped:
                self._held.pop(lane, None)
        late = [s for s in stopped if now - self._held.setdefault(s, now) > _PATIENCE]
        for lane in late:
            del self._held[lane]
        return [lane for lane in stopped if lane not in late]

    def _tell(self, error: Exception) -> None:
        text = f"{type(error).__name__}: {error}"
        if text != self._trouble:
            logger.warning(
                "what is committed is left to the relay ('qworker outbox'): %s",
                text,
                exc_info=None if isinstance(error, QworkerError) else error,
            )
        self._trouble = text


def _add(lanes: _Lanes, lane: str, ids: set[str] | None) -> None:
    before = lanes.setdefault(lane, set())
    lanes[lane] = None if ids is None or before is None else before | ids
