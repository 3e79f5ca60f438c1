"""The numbers of all processes, added up; and what is not a number, by what it is about.

A consumer's statistics are a flat mapping of what :class:`~worker.telemetry.Counters` and
:class:`~worker.telemetry.Gauges` name, and a few that are none. Counters go on where a process
ends: what it had counted is kept, so that a restart never makes them fall.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from worker.telemetry import Counters, Gauges, ShardGauges

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

_COUNTERS = frozenset(field.name for field in fields(Counters))
_GAUGES = frozenset(field.name for field in fields(Gauges))


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
    return _sum(_numbers(each, _GAUGES) for each in living)


def outages(living: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Return the handlers with an outage, each with the number of processes that see it."""
    return dict(Counter(name for each in living for name in each.get("outages", ())))


def shards(processes: Iterable[Mapping[str, Any]]) -> dict[tuple[int, int], dict[str, float]]:
    """Return what is told of each shard, by its generation and number.

    ``processes`` are the facts of processes. A shard counts where it was dealt to, and as soon as
    its process has told of it.
    """
    found = {}
    for process in processes:
        told = process.get("statistics", {}).get("shards", {})
        for shard in process.get("shards", ()):
            if (numbers := told.get(str(shard))) is not None:
                found[process["generation"], shard] = ShardGauges.known(numbers)
    return found


def counted(statistics: Mapping[str, object]) -> dict[str, float]:
    """Return the counters among the statistics of one process."""
    return _numbers(statistics, _COUNTERS)


def _numbers(statistics: Mapping[str, object], names: Collection[str]) -> dict[str, float]:
    return {
        name: value
        for name, value in statistics.items()
        if name in names and isinstance(value, int | float)
    }


def _sum(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total.get(name, 0) + value
    return total
