"""What order costs: events without a key against events in the order of few keys or many."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from speed.contenders import qworker
from speed.draining import CPU, PER_SECOND, drained
from speed.load import NOTHING, SLEEPING, Load
from speed.scenario import Bar, Case, Scale, Scenario
from speed.table import Table

#: Handlers that run at once: two processes with the default of 16.
_CONCURRENCY = 32
_UNORDERED = "without order"
_ENOUGH = f"{5 * _CONCURRENCY} keys"
_WORKS = {"no-op": NOTHING, "1 ms": SLEEPING}


def _cases(scale: Scale) -> Iterator[Case]:
    for group, work in _WORKS.items():
        events = scale.events if work == NOTHING else scale.events // 2

        def case(name: str, load: Load, group: str = group) -> Case:
            return Case(name=name, group=group, contender=qworker("redis"), load=load)

        yield case(_UNORDERED, Load(events=events, work=work, ordered=False))
        for keys in (8, _CONCURRENCY, 5 * _CONCURRENCY, 1_000):
            yield case(f"{keys} keys", Load(events=events, work=work, keys=keys))


def _bars(table: Table) -> Sequence[Bar]:
    return [
        Bar(
            f"{_ENOUGH} (5 times the concurrency) to unordered, {group} handlers",
            table.ratio(group, _ENOUGH, _UNORDERED, "per_second"),
            0.9,
        )
        for group in _WORKS
    ]


ORDER = Scenario(
    name="order",
    title="events in the order of their keys, and without order",
    cases=_cases,
    measure=drained,
    metrics=(PER_SECOND, CPU),
    base=_UNORDERED,
    bars=_bars,
)
