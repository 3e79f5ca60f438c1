"""From publishing to the handler, at a steady rate, on a machine that is idle or busy with more."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace

from speed.arithmetic import percentile
from speed.contenders import SQLITE, Contender, peers, qworker
from speed.load import Load
from speed.scenario import Bar, Case, Metric, Plot, Scale, Scenario
from speed.site import Servers, Site, Unfinished
from speed.table import Table

_RATES = (10, 200, 2_000)
_IDLE, _LOADED = "idle", "one core computing"
_PEERS = ("celery-prefork", "celery-threads", "dramatiq", "taskiq", "faststream", "huey-redis")
#: Events before the first that counts: all processes run handlers then.
_WARM_EVENTS = 200
_SETTLE = 1.0
#: The share of the samples that is left out: connections are made then.
_WARM = 0.1
_FEWEST = 50
_AT = "200/s, idle"


def _cases(scale: Scale) -> Iterator[Case]:
    for state in (_IDLE, _LOADED):
        for rate in _RATES:
            events = max(_FEWEST, int(rate * scale.seconds))
            load = Load(events=events, rate=rate)
            for contender, one_by_one in _contenders():
                yield Case(
                    name=contender.slug,
                    group=f"{rate:,}/s, {state}",
                    contender=contender,
                    load=replace(load, one_by_one=one_by_one),
                )


def _contenders() -> Iterator[tuple[Contender, bool]]:
    """Yield who takes part, and whether its publisher waits for each confirm."""
    yield qworker("redis"), True
    yield qworker("redis").on_classic_queues(), True
    yield replace(qworker("redis"), slug="qworker-redis-block"), False
    # What the runtime itself takes: nothing is asked of a store.
    yield qworker("memory").on_classic_queues(), True
    yield qworker("sqlite", broker=SQLITE), True
    for peer in peers():
        if peer.slug in _PEERS:
            yield peer, False


def _measure(servers: Servers, case: Case) -> dict[str, float]:
    busy = nullcontext() if case.group.endswith(_IDLE) else _computing()
    with servers.site(case.contender, case.load) as site, busy:
        return _latencies(site)


def _latencies(site: Site) -> dict[str, float]:
    sent, came, rate = moments_of(site)
    latencies = sorted(1e3 * (there - left) for left, there in zip(sent, came, strict=True))
    return {
        "median": percentile(latencies, 0.5),
        "p99": percentile(latencies, 0.99),
        "p999": percentile(latencies, 0.999),
        "reached": rate,
    }


def moments_of(site: Site, **environ: str) -> tuple[Sequence[float], Sequence[float], float]:
    """Return when events were sent, and when they came; and how many were sent a second.

    But for the first ones, until all is warm. ``environ`` is the worker's. Raises Unfinished.
    """
    arrivals, path = site.moments("arrivals")
    sent, sent_path = site.moments("sent")
    events = site.load.events
    # The numbers of these are those of events that come later, whose moments replace theirs.
    warm = min(_WARM_EVENTS, events)
    with site.at_work(SPEED_ARRIVALS=str(path), **environ) as worker:
        before = replace(site.load, events=warm, rate=0.0)
        site.fill(before)
        worker.reach(warm)
        time.sleep(_SETTLE)
        took = site.fill(SPEED_SENT=str(sent_path))
        worker.reach(warm + events)
    left = int(events * _WARM)
    went, came = sent.all()[left:], arrivals.all()[left:]
    if any(not there or there < then for then, there in zip(went, came, strict=True)):
        raise Unfinished("an event was counted that did not come, or came before it was sent")
    return went, came, took["events"] / took["seconds"]


@contextmanager
def _computing() -> Iterator[None]:
    """Keep one core busy."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _bars(table: Table) -> Sequence[Bar]:
    bars = []
    for metric in ("median", "p99"):
        best = table.best(_AT, metric, _PEERS.__contains__, least=True)
        ratio = table.ratio(_AT, "qworker-redis", best, metric) if best else None
        bars.append(Bar(f"{metric} at {_AT}, to the best peer ({best})", ratio, 1, at_least=False))
    return bars


LATENCY = Scenario(
    name="latency",
    title="from publishing to the handler",
    cases=_cases,
    measure=_measure,
    metrics=(
        Metric("median", "median ms", ",.2f"),
        Metric("p99", "p99 ms", ",.2f"),
        Metric("p999", "p99.9 ms", ",.2f"),
        Metric("reached", "published/s"),
    ),
    bars=_bars,
    plots=[Plot("p99", "from publishing to the handler", "ms, 99 of 100")],
    scale=Scale(seconds=20.0),
    amount="{seconds:g} s at each rate",
)
