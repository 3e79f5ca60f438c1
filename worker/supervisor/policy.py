"""What the supervisor decides, as pure functions and small machines without clock or I/O.

Whoever calls gives durations and facts; what to do comes back as a value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from worker.supervisor.totals import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

#: Deaths in a row, before a process was ready, after which it is not started again.
MAX_STARTUP_DEATHS = 5

#: Seconds after which a ready process counts as healthy, whatever ends it later.
HEALTHY_AFTER = 5.0

_STARTUP_WAIT, _STARTUP_WAIT_MAX = 0.5, 8.0
_EARLY_WAIT, _EARLY_WAIT_MAX = 0.1, 1.0
_OUTAGE_WAIT, _OUTAGE_WAIT_MAX = 0.5, 5.0
_QUIET_BEATS = 2
#: Seconds between two lines that say that nothing ran.
_SELDOM = 60.0


@dataclass(slots=True)
class Restarts:
    """How long to wait before the process of one slot is started again.

    A process that dies before it is ready waits exponentially longer each time, and is given up
    after :data:`MAX_STARTUP_DEATHS` in a row with no process getting ready in between. One that
    was ready had its chance to work: its first replacement starts at once, and if they go on dying
    young (a message that kills every process it meets), the wait grows to a second, so that the
    machine is left some air, but they are never given up: the runtime finds the culprit message by
    these deaths.
    """

    startup_deaths: int = 0
    early_deaths: int = 0
    outages: int = 0

    def ready(self) -> None:
        """Note that a process came up, this one or another."""
        self.startup_deaths = 0
        self.outages = 0

    def after_death(self, lived: float | None) -> float | None:
        """Return the seconds to wait, or None to give up.

        ``lived`` is how long the process had been ready, or None if it never was.
        """
        if lived is None:
            self.startup_deaths += 1
            if self.startup_deaths >= MAX_STARTUP_DEATHS:
                return None
            return _grown(_STARTUP_WAIT, self.startup_deaths, _STARTUP_WAIT_MAX)
        self.early_deaths = self.early_deaths + 1 if lived < HEALTHY_AFTER else 0
        if self.early_deaths <= 1:
            return 0.0
        return _grown(_EARLY_WAIT, self.early_deaths - 1, _EARLY_WAIT_MAX)

    def after_outage(self) -> float:
        """Return the seconds to wait after a start that failed because a server is away.

        That is no fault of the process, so it is tried for as long as it takes.
        """
        self.outages += 1
        return _grown(_OUTAGE_WAIT, self.outages, _OUTAGE_WAIT_MAX)


def _grown(base: float, times: int, most: float) -> float:
    """Return ``base`` doubled with each of ``times`` but the first, up to ``most``."""
    return min(most, base * 2.0 ** min(times - 1, 32))


class BurstWatch:
    """Knows when every queue is empty and all is settled: by two quiet beats of everybody.

    A beat is quiet when it reports idle, with the counters of the beat before. Any beat that is
    not begins the count anew for everybody, because work that one process did may have published
    work for another; so does a death, which leaves its work to others. Only those that live are
    remembered.
    """

    def __init__(self) -> None:
        self._counters: dict[int, Mapping[str, float]] = {}
        self._quiet: dict[int, int] = {}

    def beat(self, pid: int, statistics: Mapping[str, object]) -> None:
        """Note a beat of the process ``pid``."""
        counters = counted(statistics)
        if not statistics.get("idle") or self._counters.get(pid, counters) != counters:
            self._quiet.clear()
        else:
            self._quiet[pid] = self._quiet.get(pid, 0) + 1
        self._counters[pid] = counters

    def bury(self, pid: int) -> None:
        """Forget a process that died."""
        self._counters.pop(pid, None)
        self._quiet.clear()

    def clear(self) -> None:
        """Begin the count anew: who consumes what has changed."""
        self._quiet.clear()

    def over(self, pids: Iterable[int]) -> bool:
        """Whether all of these processes, which are all there are, had two quiet beats."""
        return all(self._quiet.get(pid, 0) >= _QUIET_BEATS for pid in pids)


def drain_allowance(timeout: float) -> float:
    """Return the seconds that a child gets of a drain, so that it can report before the end."""
    return max(0.0, timeout - min(1.0, timeout * 0.1))


def stood_still(waited: float, longest_wait: float) -> bool:
    """Whether the supervisor itself did not run for a while, since its wait took much too long.

    When the whole machine or container stood (SIGSTOP, the freezer, a suspended host) the children
    could not give a sign of life either, and their watchdogs begin anew.
    """
    return waited - longest_wait > 1.0


class Standstills:
    """What is told of times in which nothing ran: a machine that is slow has many of them. Pure.

    The first is told at once; of those of the minute after it only how many they were, and that
    with the next.
    """

    def __init__(self) -> None:
        self._told_at: float | None = None
        self._untold = 0
        self._seconds = 0.0

    def note(self, waited: float, now: float) -> str:
        """Return what to tell of one that lasted ``waited`` seconds; nothing, to tell nothing."""
        if self._told_at is not None and now < self._told_at + _SELDOM:
            self._untold += 1
            self._seconds += waited
            return ""
        text = f"nothing ran here for {waited:.0f} s: the machine or this process stood"
        if self._untold and self._told_at is not None:
            before = f"{self._untold} times in the {now - self._told_at:.0f} s before"
            text += f" (and {before}, {self._seconds:.0f} s in all)"
        self._told_at, self._untold, self._seconds = now, 0, 0.0
        return text
