"""The measurement that most scenarios share: a full queue, and a worker that works it off."""

from __future__ import annotations

from speed.scenario import Case, Metric
from speed.site import Servers, Site

#: The share of the events after which the clock runs, at the earliest and at the latest. What is
#: before is the start of processes: all run handlers then.
_WARM, _LATEST = 0.05, 0.5

PER_SECOND = Metric("per_second", "events/s", ratio=True)
CPU = Metric("cpu", "CPU µs an event", ",.1f", ratio=True)


def drained(servers: Servers, case: Case) -> dict[str, float]:
    """Publish the load of a case, then let its contender work it off."""
    with servers.site(case.contender, case.load) as site:
        site.fill()
        return worked_off(site)


def worked_off(site: Site, *, times: int = 1) -> dict[str, float]:
    """Return the rate and the CPU of a contender on queues that are full.

    ``times``: how often handlers count an event of the load.
    """
    events = site.load.events * times
    with site.at_work() as worker:
        worker.reach(max(1, int(events * _WARM)))
        first = worker.join(site.contender.processes, int(events * _LATEST))
        last = worker.reach(events)
    count = last.count - first.count
    return {
        "per_second": count / (last.at - first.at),
        "cpu": (last.cpu - first.cpu) / count * 1e6,
    }
