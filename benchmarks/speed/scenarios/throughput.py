"""How fast a full queue is worked off, and for how much CPU: the others' handlers and ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from speed.contenders import contenders
from speed.draining import CPU, PER_SECOND, drained
from speed.load import ASYNCHRONOUS, COMPUTING, NOTHING, SLEEPING, Load
from speed.scenario import Bar, Case, Plot, Scale, Scenario
from speed.table import Table


def _cases(work: str, scale: Scale) -> Iterator[Case]:
    for contender in contenders():
        if work != NOTHING and contender.slug == "kombu":
            continue
        if work == ASYNCHRONOUS and not contender.asynchronous:
            continue
        load = Load(events=scale.events, work=work)
        yield Case(name=contender.slug, contender=contender, load=load)


def _bars(table: Table) -> Sequence[Bar]:
    best = table.best("", "per_second", lambda case: case.endswith("-setnx"))
    celery = table.best(
        "", "per_second", lambda case: case.startswith("celery") and case.endswith("-setnx")
    )
    huey = "huey-sqlite"
    ratio = partial(_ratio, table)
    return (
        Bar(f"Redis dedup to the best peer with SET NX ({best})", ratio("qworker-redis", best), 5),
        Bar(f"Redis dedup to Celery with SET NX ({celery})", ratio("qworker-redis", celery), 9),
        Bar(
            "CPU an event with Redis dedup to the bare kombu loop",
            table.ratio("", "qworker-redis", "kombu", "cpu"),
            2,
            at_least=False,
        ),
        Bar("embedded SQLite with dedup to huey's SQLite", ratio("qworker-on-sqlite", huey), 4),
    )


def _ratio(table: Table, own: str, other: str | None) -> float | None:
    return table.ratio("", own, other, "per_second") if other else None


def _scenario(
    name: str, title: str, work: str, events: int, bars: Callable[..., Sequence[Bar]]
) -> Scenario:
    return Scenario(
        name=name,
        title=title,
        cases=partial(_cases, work),
        measure=drained,
        metrics=(PER_SECOND, CPU),
        base="qworker-redis",
        bars=bars,
        plots=(
            Plot("per_second", title, "events a second"),
            Plot("cpu", f"CPU: {title}", "CPU µs an event"),
        ),
        scale=Scale(events=events),
    )


def _no_bars(_: Table) -> Sequence[Bar]:
    return ()


SCENARIOS = (
    _scenario("throughput", "handlers that do nothing", NOTHING, 40_000, _bars),
    _scenario("sleeping", "handlers that sleep for 1 ms", SLEEPING, 10_000, _no_bars),
    _scenario("computing", "handlers that compute for 200 µs", COMPUTING, 10_000, _no_bars),
    _scenario("asynchronous", "coroutines that sleep for 1 ms", ASYNCHRONOUS, 10_000, _no_bars),
)
