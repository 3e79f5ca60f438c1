"""The table, in Markdown."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version

from peers.contenders import Contender
from peers.judge import Verdict
from peers.nemesis import Done, Fault

_CLIENTS = ("kombu", "amqp", "pika", "aio-pika", "redis")

_COLUMNS = (
    "", "confirmed", "lost", "repeated", "reordered", "overlapped", "set aside", "stuck",
    "longest pause", "ends",
)  # fmt: skip

_PAGE = """\
# The same faults for qworker and its peers

Made by `make peers`: four publishers, each with keys of its own and each message confirmed before \
the next, half of the time of the same key again; and a handler that takes 5 to 10 ms and has its \
effect in a file.

{facts}. {machine}; {workers}; {clients}.

{number} faults, the same list for each, 4 to 8 s from the end of one to the next: {faults}.

{table}

{meaning}
Settings:

{settings}

Runs:

{runs}
"""

_MEANING = """\
- *lost*: confirmed by the broker, no effect, and no queue holds it any more.
- *repeated*: effects beyond the first of each message.
- *reordered*: messages whose first effect came after that of a later message of their key.
- *overlapped*: executions that began while another one of the same key was under way.
- *set aside*: messages in dead-letter queues. *stuck*: messages that were still in the queues \
{bound:g} s after the load.
- *longest pause*: seconds without any effect. *ends*: how often the worker's main process ended \
without being asked to; it was started again 1 s later, as systemd would.

*Marked before* is the hand-written dedup `if not redis.set(f"done:{{id}}", 1, nx=True): return` \
before the effect: a process that dies between the mark and the effect loses the message, \
because the redelivery is taken for a duplicate. *Marked after* looks first and marks after the \
effect: a process that dies, or loses Redis, in between repeats it, and so do two deliveries of a \
message that run at once. No mark keeps an order: of these workers only qworker promises one per \
key on RabbitMQ. A second effect of qworker is its window too, between an effect and its record.
"""


@dataclass(frozen=True, slots=True)
class Row:
    """How one contender came through."""

    contender: Contender
    verdict: Verdict
    #: The ids of what the queues held in the end, wherever.
    held: frozenset[str]
    waiting: int
    aside: int
    seconds: float
    drained: float | None
    ends: int
    overruns: int
    #: When the load began, and the faults of it that were done.
    began: float
    done: Sequence[Done]
    undone: int
    #: The machine's load average of the last five minutes.
    busy: float


def line(row: Row) -> str:
    """Return its line of the table."""
    found = row.verdict
    lost = len(found.missing - row.held)  # by id: a copy of what is done hides no loss
    cells = (
        row.contender.title, f"{found.confirmed:,}", lost, found.repeated, found.reordered,
        found.overlapped, row.aside, row.waiting, f"{found.pause.seconds:.1f} s", row.ends,
    )  # fmt: skip
    return _cells(cells)


def remarks(row: Row) -> str:
    """Return what else is worth knowing."""
    words = [f"{row.seconds:.0f} s of load"]
    words.append("not drained" if row.drained is None else f"drained in {row.drained:.0f} s")
    words.append(f"load average {row.busy:.0f}")
    words.append(_paused(row))
    if row.overruns:
        words.append(f"{row.overruns} times killed because SIGTERM did not end it in 60 s")
    if row.undone:
        words.append(f"{row.undone} faults left out because no process ran handlers")
    return f"- {row.contender.title}: {', '.join(words)}."


def _paused(row: Row) -> str:
    """Tell when the longest pause was, and of what."""
    pause = row.verdict.pause
    faults = [
        f"{each.kind} at {each.since - row.began:.1f} s"
        for each in row.done
        if pause.met(each.since, each.until)
    ]
    span = f"{pause.since - row.began:.1f} to {pause.until - row.began:.1f} s"
    return f"longest pause {span} ({'; '.join(faults) or 'no fault'})"


def report(
    rows: Sequence[Row], faults: Sequence[Fault], facts: dict[str, object], bound: float
) -> str:
    """Return the whole page."""
    settings = dict.fromkeys(f"- {r.contender.name}: {r.contender.settings}." for r in rows)
    kinds = Counter(fault.kind for fault in faults)
    return _PAGE.format(
        facts=", ".join(f"{name} {value}" for name, value in facts.items()),
        machine=f"{os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}",
        workers=", ".join(dict.fromkeys(row.contender.version for row in rows)),
        clients=", ".join(f"{name} {version(name)}" for name in _CLIENTS),
        number=len(faults),
        faults=", ".join(f"{count} x {kind}" for kind, count in kinds.items()),
        table="\n".join((_cells(_COLUMNS), "|---" * len(_COLUMNS) + "|", *map(line, rows))),
        meaning=_MEANING.format(bound=bound),
        settings="\n".join(settings),
        runs="\n".join(map(remarks, rows)),
    )


def _cells(cells: Iterable[object]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"
