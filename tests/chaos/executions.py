"""What handlers did, and what was done to their processes: the lines of a history, joined."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import Enum

from chaos.history import Entry


@dataclass(frozen=True, slots=True, kw_only=True)
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
    #: When the effect happened; None: it did not.
    effect: float | None
    #: When it returned or raised, or else of its effect; None: nobody knows.
    end: float | None
    #: The pid of the supervisor; 0: it is not known.
    life: int = 0

    def __str__(self) -> str:
        """Return what a reader of a failed test wants to know."""
        effect = "no effect" if self.effect is None else f"effect {self.effect:.3f}"
        end = "never" if self.end is None else f"{self.end:.3f}"
        return (
            f"{self.handler} {self.key}#{self.sequence} attempt {self.attempt}, shard {self.shard},"
            f" fence {self.fence}, {self.supervisor} pid {self.pid}, {self.begin:.3f} to {end},"
            f" {effect}"
        )


class Kind(Enum):
    """What a test did."""

    KILL = "kill -9"
    #: A second SIGTERM to its supervisor: it ends at once by itself, and records what is done.
    STOP = "stopped at once"
    PAUSE = "pause"
    CUT = "cut"
    #: Nobody renewed its leases, since its supervisor stood still. It runs on, and records it.
    LAPSE = "no leases renewed"
    #: The process was there no more, whoever did it: seen alive at ``since``, gone at ``until``.
    GONE = "gone"
    #: The dedup store did not answer, to anybody.
    OUTAGE = "outage of the dedup store"
    #: The broker did not answer, and broke no connection either.
    HANG = "hang of the broker"
    #: The dedup store lost what it knew.
    AMNESIA = "the dedup store forgot"
    #: The clock of the lease store was wrong.
    CLOCK = "wrong clock of the lease store"
    #: The broker, or the way to it, broke off or was late: what it delivered comes once more.
    BROKER = "trouble of the broker"
    #: Something that excuses nothing: told in stories only.
    OTHER = "trouble"


@dataclass(frozen=True, slots=True)
class Fault:
    """Trouble that a test made: for these processes of a supervisor, or for all of it.

    What it explains, and for how long, is in :mod:`chaos.excuses`.
    """

    kind: Kind
    #: Empty: it happened to everybody.
    supervisor: str
    since: float
    until: float = math.inf
    #: The processes that were killed, stopped or paused; None: whatever it runs.
    pids: frozenset[int] | None = None
    #: What it was, where the kind does not say enough.
    what: str = ""

    def met(self, execution: Execution) -> bool:
        """Tell whether it struck the process of this execution, at whatever time."""
        theirs = self.pids is None or execution.pid in self.pids
        return theirs and self.supervisor in ("", execution.supervisor)

    def dump(self) -> str:
        """Return it as the ``detail`` of an entry."""
        facts = asdict(self) | {"kind": self.kind.name}
        facts["pids"] = None if self.pids is None else sorted(self.pids)
        facts["until"] = None if math.isinf(self.until) else self.until
        return json.dumps(facts)

    @classmethod
    def load(cls, text: str) -> Fault:
        """Return what ``dump`` told of."""
        facts = json.loads(text)
        pids, until = facts["pids"], facts["until"]
        return cls(
            Kind[facts["kind"]],
            facts["supervisor"],
            facts["since"],
            math.inf if until is None else until,
            None if pids is None else frozenset(pids),
            facts["what"],
        )

    def __str__(self) -> str:
        """Return what a reader of a story wants to know."""
        whom = self.supervisor or "everybody"
        if self.pids is not None:
            whom += f" pid {', '.join(map(str, sorted(self.pids)))}"
        span = f"{self.since:.3f}"
        if not math.isinf(self.until):
            span += f" to {self.until:.3f}"
        return f"{self.what or self.kind.value}: {whom}, {span}"


def gone_at(fault: Fault) -> float:
    """Return when a fault was over; a kill that nobody saw the end of was over at once."""
    return fault.since if math.isinf(fault.until) else fault.until


def effect_of(execution: Execution) -> float:
    """Return when the effect happened of an execution that had one."""
    assert execution.effect is not None
    return execution.effect


def outcome_of(execution: Execution) -> float:
    """Return when there was something to record: its effect, or else that it failed."""
    times = (execution.effect, execution.end, execution.begin)
    return next(time for time in times if time is not None)


def faults(entries: Iterable[Entry]) -> list[Fault]:
    """Return the trouble that a history tells of."""
    return [Fault.load(entry.detail) for entry in entries if entry.what == "fault"]


def join(entries: Iterable[Entry]) -> list[Execution]:
    """Return the executions that a history tells of, in the order of their beginning.

    Where nobody counted the calls of a handler, two of them for one id in one process come one
    after the other.
    """
    begun: dict[tuple[object, ...], list[Entry]] = {}
    found: list[Execution] = []
    for entry in entries:
        place = entry.pid, entry.handler, entry.id, entry.run
        if entry.what == "begin":
            if place in begun:
                found.append(_joined(begun[place]))
            begun[place] = [entry]
        elif entry.what in ("effect", "end", "failed"):
            begun[place].append(entry)
    found += map(_joined, begun.values())
    return sorted(found, key=lambda execution: execution.begin)


def _joined(lines: list[Entry]) -> Execution:
    first = lines[0]
    times = {line.what: line.at for line in lines[1:]}
    effect = times.get("effect")
    return Execution(
        **{name: getattr(first, name) for name in _SHARED},
        begin=first.at,
        effect=effect,
        end=times.get("end", times.get("failed", effect)),
    )


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
    "life",
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
