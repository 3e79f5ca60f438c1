"""Where the time of one event goes, from publishing to the handler, on an idle machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from speed.arithmetic import percentile
from speed.contenders import kombu, qworker
from speed.load import Load
from speed.scenario import Case, Metric, Scale, Scenario
from speed.scenarios.latency import moments_of
from speed.site import Servers

_RATE = 200.0
#: As ``apps.stages`` has them, which this process cannot import.
_STAGES = ("woken", "asked", "answered", "handed")


def _cases(scale: Scale) -> Iterator[Case]:
    events = int(_RATE * scale.seconds)
    load = Load(events=events, rate=_RATE, one_by_one=True)
    for contender in (kombu(), qworker("memory"), qworker("redis", processes=1)):
        for each in (contender, contender.on_classic_queues()):
            yield Case(name=each.slug, contender=each, load=load)


def _measure(servers: Servers, case: Case) -> dict[str, float]:
    with servers.site(case.contender, case.load) as site:
        folder = site.place.folder
        own = case.contender.is_qworker
        stages = [site.moments(stage)[0] for stage in _STAGES] if own else []
        environ = {"SPEED_STAGES": str(folder)} if own else {}
        sent, came, _ = moments_of(site, **environ)
    points = [sent, *(stage.all()[-len(sent) :] for stage in stages), came]
    names = ("broker", "read", "store", "route", "thread") if own else ("broker",)
    figures = {"whole": _median(sent, came)}
    for name, (before, after) in zip(names, pairwise(points), strict=True):
        figures[name] = _median(before, after)
    return figures


def _median(before: Sequence[float], after: Sequence[float]) -> float:
    """Return the milliseconds between two moments of an event."""
    took = sorted(1e3 * (b - a) for a, b in zip(before, after, strict=True))
    return percentile(took, 0.5)


STAGES = Scenario(
    name="stages",
    title="where the time of one event goes",
    cases=_cases,
    measure=_measure,
    metrics=(
        Metric("whole", "whole ms", ",.2f"),
        Metric("broker", "to the socket", ",.2f"),
        Metric("read", "reading", ",.2f"),
        Metric("store", "the store", ",.2f"),
        Metric("route", "to the pool", ",.2f"),
        Metric("thread", "to the handler", ",.2f"),
    ),
    scale=Scale(seconds=20.0),
    amount="{seconds:g} s at 200/s; medians of each stage",
)
