"""Memory under a light load, and the CPU of a worker that has nothing to do."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from speed.contenders import SQLITE, libraries, peers, qworker
from speed.load import Load
from speed.scenario import Bar, Case, Metric, Plot, Scale, Scenario
from speed.site import Servers
from speed.table import Table

_RATE = 100
_MEBI = 1024 * 1024
_WARM_EVENTS = 200
#: Until what a start leaves to be done is done.
_SETTLE = 3.0


def _cases(scale: Scale) -> Iterator[Case]:
    load = Load(events=int(_RATE * scale.seconds), rate=_RATE)
    ours = qworker("redis"), qworker("sqlite", broker=SQLITE)
    for contender in (*ours, libraries(), *peers()):
        yield Case(name=contender.slug, contender=contender, load=load)


def _measure(servers: Servers, case: Case) -> dict[str, float]:
    with servers.site(case.contender, case.load) as site, site.at_work() as worker:
        site.fill(replace(site.load, events=_WARM_EVENTS, rate=0.0))
        worker.reach(_WARM_EVENTS)
        time.sleep(_SETTLE)
        began = worker.snapshot()
        time.sleep(site.load.events / _RATE)
        ended = worker.snapshot()
        site.fill()
        worker.reach(_WARM_EVENTS + site.load.events)
        return {
            "pss": worker.tree.pss() / _MEBI,
            "processes": len(worker.tree.processes()),
            "idle": 100 * (ended.cpu - began.cpu) / (ended.at - began.at),
        }


def _bars(table: Table) -> Sequence[Bar]:
    memory = table.ratio("", "qworker-redis", "dramatiq", "pss")
    idle = table.median("", "qworker-redis", "idle")
    return (
        Bar("memory to Dramatiq's", memory, 1, at_least=False),
        Bar("idle CPU, % of a core", idle, 1, at_least=False),
    )


FOOTPRINT = Scenario(
    name="footprint",
    title=f"memory (PSS) under {_RATE} events/s, and idle CPU",
    cases=_cases,
    measure=_measure,
    metrics=(
        Metric("pss", "PSS MiB", ",.1f"),
        Metric("processes", "processes"),
        Metric("idle", "idle CPU, % of a core", ",.2f"),
    ),
    bars=_bars,
    plots=[Plot("pss", "memory of all processes", "MiB (PSS)")],
    scale=Scale(seconds=20.0),
    amount="{seconds:g} s",
)
