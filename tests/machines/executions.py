"""What handlers did: the lines of a ledger, begin and effect joined, and who was troubled when."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from acceptance.running import Entry


@dataclass(frozen=True, slots=True)
class Execution:
    """A handler's run. Times are of CLOCK_MONOTONIC, which all namespaces share."""

    handler: str
    id: str
    key: str
    sequence: int
    attempt: int
    shard: int
    fence: int
    supervisor: str
    pid: int
    begin: float
    #: When the effect happened, which is the last thing that it does; None: it did not.
    end: float | None

    def __str__(self) -> str:
        """Return what a reader of a failed test wants to know."""
        end = "never" if self.end is None else f"{self.end:.3f}"
        return (
            f"{self.handler} {self.key}#{self.sequence} attempt {self.attempt}, shard {self.shard},"
            f" fence {self.fence}, {self.supervisor} pid {self.pid}, {self.begin:.3f} to {end}"
        )


class Kind(Enum):
    """What a test did to a supervisor."""

    KILL = "kill -9"
    PAUSE = "pause"
    CUT = "cut"


@dataclass(frozen=True, slots=True)
class Fault:
    """Trouble that a test made: for these processes of a supervisor, or for all of it.

    What outlived its lease was paused or cut off; what was killed cannot have told of its effect.
    """

    kind: Kind
    supervisor: str
    since: float
    until: float = math.inf
    #: The processes that were killed or paused; None: whatever it runs.
    pids: frozenset[int] | None = None

    def met(self, execution: Execution) -> bool:
        """Tell whether it struck the process of this execution, at whatever time."""
        theirs = self.pids is None or execution.pid in self.pids
        return theirs and execution.supervisor == self.supervisor


def join(entries: Iterable[Entry]) -> list[Execution]:
    """Return the executions that a ledger tells of, in the order of their beginning."""
    begun: dict[tuple[object, ...], Entry] = {}
    found: list[Execution] = []

    def place(entry: Entry) -> tuple[object, ...]:
        return entry.pid, entry.handler, entry.id

    def finished(entry: Entry, end: float | None) -> Execution:
        facts = {name: getattr(entry, name) for name in _SHARED}
        return Execution(**facts, begin=entry.at, end=end)

    for entry in entries:
        if entry.what == "begin":
            before = begun.pop(place(entry), None)
            if before is not None:
                found.append(finished(before, None))
            begun[place(entry)] = entry
        else:
            found.append(finished(begun.pop(place(entry)), entry.at))
    found += [finished(entry, None) for entry in begun.values()]
    return sorted(found, key=lambda execution: execution.begin)


_SHARED = (
    "handler",
    "id",
    "key",
    "sequence",
    "attempt",
    "shard",
    "fence",
    "supervisor",
    "pid",
)


def gaps(executions: Iterable[Execution], since: float, until: float) -> dict[int, float]:
    """Return for each shard the longest time without a begin, of those that touch the span.

    A shard that began nothing before ``since``, or nothing after ``until``, is judged by the span's
    own ends: under steady load that is the time in which nobody had it.
    """
    begins: dict[int, list[float]] = {}
    for execution in executions:
        begins.setdefault(execution.shard, []).append(execution.begin)
    longest = {}
    for shard, times in begins.items():
        before = max((t for t in times if t < since), default=since)
        after = min((t for t in times if t > until), default=until)
        moments = [before, *sorted(t for t in times if since <= t <= until), after]
        longest[shard] = max(b - a for a, b in itertools.pairwise(moments))
    return longest


def owners(executions: Iterable[Execution]) -> dict[int, str]:
    """Return for each shard the supervisor that began something of it last."""
    return {e.shard: e.supervisor for e in sorted(executions, key=lambda e: e.begin)}
