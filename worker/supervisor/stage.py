"""How far a child process has come, and the watchdog that knows when it hangs on its way."""

from __future__ import annotations

from enum import Enum
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from worker.supervisor.control import Terms

#: Seconds from the start of a process until its app must have been imported.
_IMPORT_LIMIT = 120.0
#: Seconds past ``connect_timeout`` within which an assigned process must be ready.
_OPEN_MARGIN = 60.0


class Stage(Enum):
    """How far a process has come."""

    BOOTING = "booting"  # imports the app
    GREETED = "greeted"  # waits for the plan
    OPENING = "opening"  # connects
    READY = "ready"  # consumes what it is told to take
    DRAINING = "draining"
    FINISHED = "finished"  # its consumer ended, it exits
    DEAD = "dead"


class Watchdog:
    """Watches one process. Times are readings of the monotonic clock."""

    def __init__(self, now: float) -> None:
        self._spawned_at = now
        self._opened_at = now
        self._beat_at = now

    def opened(self) -> None:
        """Note that the process was told to connect."""
        self._opened_at = monotonic()

    def beat(self, now: float) -> None:
        """Note a sign of life."""
        self._beat_at = now

    def silent_for(self, now: float) -> float:
        """Return the seconds since the last sign of life."""
        return now - self._beat_at

    def forgive(self, seconds: float) -> None:
        """Move on by time in which nobody ran."""
        self._spawned_at += seconds
        self._opened_at += seconds
        self._beat_at += seconds

    def complaint(self, stage: Stage, now: float, terms: Terms | None) -> str:
        """Return what the process should have done by now, or nothing."""
        if stage is Stage.BOOTING and now - self._spawned_at > _IMPORT_LIMIT:
            return f"its app was not imported within {_IMPORT_LIMIT:.0f} s"
        if terms is None:
            return ""
        silence = self.silent_for(now)
        if stage in (Stage.READY, Stage.DRAINING) and silence > terms.watchdog:
            return f"no sign of life for {silence:.0f} s"
        limit = terms.connect_timeout + _OPEN_MARGIN
        if stage is Stage.OPENING and now - self._opened_at > limit:
            return f"not ready within {limit:.0f} s"
        return ""
