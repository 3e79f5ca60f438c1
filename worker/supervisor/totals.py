"""The numbers of all processes, added up.

A consumer's statistics are a flat mapping. What :class:`~worker.telemetry.Counters` names only ever
grows; every other number, or truth value, is a gauge. Counters go on where a process ends: what it
had counted is kept, so that a restart never makes them fall.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

from worker.telemetry import Counters

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_COUNTERS = frozenset(field.name for field in fields(Counters))

#: Told for :class:`~worker.supervisor.policy.BurstWatch`, and otherwise not looked for.
_NO_GAUGE = _COUNTERS | {"idle"}


class Totals:
    """Sums of counters over processes, those that are gone included."""

    def __init__(self) -> None:
        self._departed: dict[str, float] = {}

    def departed(self, statistics: Mapping[str, object]) -> None:
        """Keep the counters of a process that ended."""
        self._departed = _sum([self._departed, counted(statistics)])

    def counters(self, living: Iterable[Mapping[str, object]]) -> dict[str, float]:
        """Return every counter of the service since its supervisor started."""
        return _sum([self._departed, *map(counted, living)])


def gauges(living: Iterable[Mapping[str, object]]) -> dict[str, float]:
    """Return every gauge; of a truth value, in how many processes it holds."""
    return _sum(
        {name: value for name, value in _numbers(each).items() if name not in _NO_GAUGE}
        for each in living
    )


def counted(statistics: Mapping[str, object]) -> dict[str, float]:
    """Return the counters among the statistics of one process."""
    return {name: value for name, value in _numbers(statistics).items() if name in _COUNTERS}


def _numbers(statistics: Mapping[str, object]) -> dict[str, float]:
    return {name: value for name, value in statistics.items() if isinstance(value, int | float)}


def _sum(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total.get(name, 0) + value
    return total
