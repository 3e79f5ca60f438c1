"""What the history says of a run. Pure; knows nothing of who wrote it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from peers.history import BEGIN, CONFIRMED, EFFECT, Entry


@dataclass(frozen=True, slots=True)
class Verdict:
    """Numbers of messages, but for the last two: executions, and seconds."""

    confirmed: int
    #: Confirmed, and without an effect.
    missing: int
    #: Effects beyond the first of each message.
    repeated: int
    #: First effects that came after the first effect of a later message of their key.
    reordered: int
    #: Executions that began while another one of their key was under way.
    overlapped: int
    #: The longest time without an effect between the first one and the last.
    pause: float


def judge(history: Sequence[Entry]) -> Verdict:
    """Return what happened."""
    confirmed = {entry.id for entry in history if entry.what == CONFIRMED}
    effects = [entry for entry in history if entry.what == EFFECT]
    times = Counter(entry.id for entry in effects)
    moments = sorted(entry.at for entry in effects)
    pauses = [later - before for before, later in pairwise(moments)]
    return Verdict(
        confirmed=len(confirmed),
        missing=len(confirmed - times.keys()),
        repeated=times.total() - len(times),
        reordered=_reordered(effects),
        overlapped=_overlapped(history),
        pause=max(pauses, default=0.0),
    )


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
