"""The status of a service as Prometheus reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.core import Metric

    from worker.supervisor.status import Status

CONTENT_TYPE = CONTENT_TYPE_LATEST


def exposition(status: Status) -> bytes:
    """Return every metric of ``status``, as text of :data:`CONTENT_TYPE`."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(StatusCollector(status))
    return generate_latest(registry)


class StatusCollector(Collector):
    """The metrics of one status. What the numbers mean is said where they are counted."""

    def __init__(self, status: Status) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """Return one metric after the other."""
        status = self._status
        yield self._gauge("live", "1 while every process gives signs of life", status.live)
        yield self._gauge("ready", "1 while every process consumes", status.ready)
        yield self._gauge("processes", "Processes, ready or not", len(status.processes))
        yield self._counter("process_ends", "Processes that ended unasked", status.restarts)
        for name, value in sorted(status.counters.items()):
            yield self._counter(name, f"Messages: {name.replace('_', ' ')}", value)
        for name, value in sorted(status.gauges.items()):
            yield self._gauge(name, f"Of all processes: {name.replace('_', ' ')}", value)

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(f"qworker_{name}", text, labels=["service"])
        family.add_metric([self._status.service], value)
        return family

    def _counter(self, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(f"qworker_{name}", text, labels=["service"])
        family.add_metric([self._status.service], value)
        return family
