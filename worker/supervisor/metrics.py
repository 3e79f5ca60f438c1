"""The status of a service as Prometheus reads it.

What the numbers of consumers mean is said in ``worker.telemetry``; of what only a supervisor
knows, here.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from worker.supervisor.totals import outages, shards
from worker.telemetry import Counters, Gauges, ShardGauges

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.core import Metric

    from worker.supervisor.status import Status

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SHARD_LABELS = ("generation", "shard")


@dataclass(frozen=True, slots=True)
class Described:
    """A metric: its name here, what it means, and its labels besides ``service``."""

    name: str
    help: str
    counts: bool = False
    labels: tuple[str, ...] = ()
    unit: str = ""

    @property
    def shown(self) -> str:
        """Its name as Prometheus knows it."""
        endings = [self.unit] * bool(self.unit) + ["total"] * self.counts
        return "_".join(["qworker", self.name, *endings])

    def family(self) -> GaugeMetricFamily | CounterMetricFamily:
        """Return it without samples."""
        kind = CounterMetricFamily if self.counts else GaugeMetricFamily
        return kind(self.shown, self.help, labels=["service", *self.labels])


def _described(
    numbers: type[Counters | Gauges | ShardGauges],
    *,
    prefix: str = "",
    counts: bool = False,
    labels: tuple[str, ...] = (),
) -> list[Described]:
    """Return the metrics that a class of numbers describes."""
    return [
        Described(
            f"{prefix}{each.name}", each.metadata["help"], counts, labels, each.metadata["unit"]
        )
        for each in fields(numbers)
    ]


#: Every metric that there is, in the order in which they are shown.
METRICS = (
    Described("live", "1 while every process gives signs of life"),
    Described("ready", "1 while every process consumes, and waits for no server"),
    Described("processes", "Processes, ready or not"),
    Described("process_ends", "Processes that ended unasked", counts=True),
    *_described(Counters, counts=True),
    *_described(Gauges),
    Described(
        "outages",
        "Processes in which this handler has an outage, and waits for a probe to succeed",
        labels=("handler",),
    ),
    *_described(ShardGauges, prefix="shard_", labels=_SHARD_LABELS),
)


def exposition(status: Status) -> bytes:
    """Return every metric of ``status``, as text of :data:`CONTENT_TYPE`."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(StatusCollector(status))
    return generate_latest(registry)


class StatusCollector(Collector):
    """The metrics of one status."""

    def __init__(self, status: Status) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """Return one metric after the other; one that nobody told of yet has no sample."""
        found: dict[str, list[tuple[tuple[str, ...], float]]] = defaultdict(list)
        for name, labels, value in _samples(self._status):
            found[name].append((labels, value))
        for metric in METRICS:
            family = metric.family()
            for labels, value in found[metric.name]:
                family.add_metric([self._status.service, *labels], value)
            yield family


def _samples(status: Status) -> Iterator[tuple[str, tuple[str, ...], float]]:
    """Yield the name of a metric, its labels besides the service, and its value."""
    yield "live", (), status.live
    yield "ready", (), status.ready
    yield "processes", (), len(status.processes)
    yield "process_ends", (), status.restarts
    for name, value in {**status.counters, **status.gauges}.items():
        yield name, (), value
    seen = outages(process.get("statistics", {}) for process in status.processes)
    for handler, number in seen.items():
        yield "outages", (handler,), number
    for (generation, shard), gauges in shards(status.processes).items():
        for name, value in gauges.items():
            yield f"shard_{name}", (str(generation), str(shard)), value
