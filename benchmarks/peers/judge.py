"""What the history says of a run. Pure; knows nothing of who wrote it."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from peers.history import BEGIN, CONFIRMED, EFFECT, Entry

#: The ids of publishers, wherever a client puts them.
_ID = re.compile(rb"key-\d+-\d+")
#: Seconds by which an effect may come after the fault that it is the last one before.
_SLACK = 0.5


class Pause(NamedTuple):
    """A time without an effect, between two of them; by the clock of the history."""

    since: float
    until: float

    @property
    def seconds(self) -> float:
        """How long it was."""
        return self.until - self.since

    def met(self, since: float, until: float) -> bool:
        """Tell whether something that took so long went on in it, or brought it about."""
        return since <= self.until and until >= self.since - _SLACK


@dataclass(frozen=True, slots=True)
class Verdict:
    """Numbers of messages, but for overlaps, which are executions, and what is a name."""

    confirmed: int
    #: The ids of what was confirmed, and has no effect.
    missing: frozenset[str]
    #: Effects beyond the first of each message.
    repeated: int
    #: First effects that came after the first effect of a later message of their key.
    reordered: int
    #: Executions that began while another one of their key was under way.
    overlapped: int
    #: The longest time without an effect between the first one and the last.
    pause: Pause


def judge(history: Sequence[Entry]) -> Verdict:
    """Return what happened."""
    confirmed = {entry.id for entry in history if entry.what == CONFIRMED}
    effects = [entry for entry in history if entry.what == EFFECT]
    times = Counter(entry.id for entry in effects)
    moments = sorted(entry.at for entry in effects)
    pauses = [Pause(*both) for both in pairwise(moments)]
    return Verdict(
        confirmed=len(confirmed),
        missing=frozenset(confirmed - times.keys()),
        repeated=times.total() - len(times),
        reordered=_reordered(effects),
        overlapped=_overlapped(history),
        pause=max(pauses, key=lambda pause: pause.seconds, default=Pause(0.0, 0.0)),
    )


def ids_in(message: bytes) -> set[str]:
    """Return the ids of publishers in a message, as whatever client wrote it."""
    return {found.decode() for found in _ID.findall(message)}


def missing(history: Iterable[Entry]) -> int:
    """Return how many confirmed messages have no effect yet."""
    ids: dict[str, set[str]] = {CONFIRMED: set(), BEGIN: set(), EFFECT: set()}
    for entry in history:
        ids[entry.what].add(entry.id)
    return len(ids[CONFIRMED] - ids[EFFECT])


def _reordered(effects: Iterable[Entry]) -> int:
    seen: set[str] = set()
    highest: dict[str, int] = {}
    late = 0
    for entry in effects:
        if entry.id in seen:
            continue
        seen.add(entry.id)
        if entry.sequence < highest.get(entry.key, -1):
            late += 1
        else:
            highest[entry.key] = entry.sequence
    return late


def _overlapped(history: Iterable[Entry]) -> int:
    """Count by places in the file; an execution that was killed has no end and is left out."""
    begun: dict[tuple[int, int, str], int] = {}
    executions: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for place, entry in enumerate(history):
        execution = entry.pid, entry.thread, entry.id
        if entry.what == BEGIN:
            begun[execution] = place
        elif entry.what == EFFECT and execution in begun:
            executions[entry.key].append((begun.pop(execution), place))
    overlapped = 0
    for each in executions.values():
        end = -1
        for begin, effect in sorted(each):
            overlapped += begin < end
            end = max(end, effect)
    return overlapped
