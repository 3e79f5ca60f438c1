"""Numbers of all processes added up, and how Prometheus reads them.

A consumer's statistics are a mapping with ``counters`` (name to number, only ever growing),
``gauges`` (name to number) and ``shards`` (shard to a mapping of gauges). Counters go on where a
process ends: what it had counted is kept, so that a restart never makes them fall.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from prometheus_client.metrics_core import Metric

    from worker.supervisor.status import Status


class Totals:
    """Sums of counters over processes, those that are gone included."""

    def __init__(self) -> None:
        self._departed: Counter[str] = Counter()

    def departed(self, statistics: Mapping[str, object]) -> None:
        """Keep the counters of a process that ended."""
        self._departed.update(dict(_numbers(statistics.get("counters"))))

    def counters(self, living: Iterable[Mapping[str, object]]) -> dict[str, int]:
        """Return every counter of the service since its supervisor started."""
        total = Counter(self._departed)
        for statistics in living:
            total.update(dict(_numbers(statistics.get("counters"))))
        return dict(total)


def gauges(living: Iterable[Mapping[str, object]]) -> dict[str, int]:
    """Return every gauge, added up over the living processes."""
    total: Counter[str] = Counter()
    for statistics in living:
        total.update(dict(_numbers(statistics.get("gauges"))))
    return dict(total)


def shard_gauges(living: Iterable[Mapping[str, object]]) -> dict[str, dict[str, int]]:
    """Return the gauges of each shard, by the shard's number as text."""
    found: dict[str, dict[str, int]] = {}
    for statistics in living:
        shards = statistics.get("shards")
        for shard, values in shards.items() if isinstance(shards, dict) else ():
            found[str(shard)] = dict(_numbers(values))
    return found


def _numbers(values: object) -> Iterator[tuple[str, int]]:
    """Return the names and numbers of a mapping; nothing else in it counts.

    Numbers are typed as int, as Counter wants them; floats add up just so.
    """
    for name, number in values.items() if isinstance(values, dict) else ():
        if isinstance(number, int | float) and not isinstance(number, bool):
            yield str(name), number  # type: ignore[misc]  # see the docstring


def exposition(status: Status) -> tuple[str, bytes]:
    """Return content type and text for Prometheus.

    Raises ImportError where prometheus_client is not installed.
    """
    from prometheus_client import (  # noqa: PLC0415 - an optional extra
        CONTENT_TYPE_LATEST,
        CollectorRegistry,
        generate_latest,
    )

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(_families(status)))
    return CONTENT_TYPE_LATEST, generate_latest(registry)


class _Families:
    """A collector, as prometheus_client calls it, of metrics that are there already."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        """Return every metric."""
        return self._families


def _families(status: Status) -> list[Metric]:
    from prometheus_client.metrics_core import (  # noqa: PLC0415 - an optional extra
        CounterMetricFamily,
        GaugeMetricFamily,
    )

    def gauge(name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(f"qworker_{name}", text, labels=["service"])
        family.add_metric([status.service], value)
        return family

    def counter(name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(f"qworker_{name}", text, labels=["service"])
        family.add_metric([status.service], value)
        return family

    def by_shard(name: str) -> Metric:
        family = GaugeMetricFamily(
            f"qworker_shard_{name}", _words(name), labels=["service", "shard"]
        )
        for shard, values in status.shards.items():
            if name in values:
                family.add_metric([status.service, shard], values[name])
        return family

    return [
        gauge("live", "1 while every process gives signs of life", status.live),
        gauge("ready", "1 while every process consumes", status.ready),
        gauge("processes", "Processes, however far they have come", len(status.processes)),
        counter("process_restarts", "Processes that ended unasked", status.restarts),
        *(counter(name, _words(name), value) for name, value in sorted(status.counters.items())),
        *(gauge(name, _words(name), value) for name, value in sorted(status.gauges.items())),
        *(by_shard(name) for name in sorted({n for v in status.shards.values() for n in v})),
    ]


def _words(name: str) -> str:
    return f"{name.replace('_', ' ')} (see docs on metrics)"
