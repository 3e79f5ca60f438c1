"""What a long past costs: throughput with many remembered ids, and the bytes of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from speed.contenders import peers, qworker
from speed.draining import CPU, PER_SECOND, worked_off
from speed.load import Load
from speed.remembering import mark, memory_of, remember, tidied_up
from speed.scenario import Bar, Case, Metric, Plot, Scale, Scenario
from speed.scenarios.growth import flat
from speed.site import Servers
from speed.table import Table

_NONE = "none"
#: Each a tenth of the next; as far as the scale goes.
_SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
_MILLION = f"{1_000_000:,}"
_RANDOM = ", random ids"


def _cases(scale: Scale) -> Iterator[Case]:
    for store, random_ids in (("redis", False), ("sqlite", False), ("sqlite", True)):
        contender = qworker(store)
        for ids in (0, *(size for size in _SIZES if size <= scale.most)):
            yield Case(
                name=f"{ids:,}" if ids else _NONE,
                group=contender.slug + (_RANDOM if random_ids else ""),
                contender=contender,
                load=Load(events=scale.events, random_ids=random_ids),
                x=ids,
            )


def _measure(servers: Servers, case: Case) -> dict[str, float]:
    with servers.site(case.contender, case.load) as site:
        url = site.place.dedup_url(case.contender.dedup)
        remember(url, int(case.x or 0), random_ids=case.load.random_ids)
        site.fill()
        if case.contender.dedup == "redis":
            tidied_up(url)
        return worked_off(site)


def _bars(table: Table) -> Sequence[Bar]:
    bars = []
    for group in dict.fromkeys(group for group, _ in table.cases):
        ratio = table.ratio(group, _MILLION, _NONE, "per_second")
        bars.append(Bar(f"{group}: {_MILLION} remembered ids to none", ratio, 0.9))
        bars += flat(f"remembered ids, {group}", group, table)
    return bars


HISTORY = Scenario(
    name="history",
    title="CPU of an event against remembered ids",
    cases=_cases,
    measure=_measure,
    metrics=(PER_SECOND, CPU),
    base=_NONE,
    bars=_bars,
    plots=[Plot("cpu", "CPU of an event against remembered ids", "CPU µs an event", over="ids")],
)


def _id_cases(scale: Scale) -> Iterator[Case]:
    marked = next(peers()).marked()
    sizes = [size for size in _SIZES if size <= scale.most]
    for contender, name in ((qworker("redis"), "qworker"), (marked, "SET key 1 NX EX")):
        for ids in sizes:
            yield Case(
                name=f"{ids:,} ids", group=name, contender=contender, load=Load(events=1), x=ids
            )


def _measure_ids(servers: Servers, case: Case) -> dict[str, float]:
    url = servers.redis.fresh_url()
    before = memory_of(url)
    ids = int(case.x or 0)
    if case.contender.is_qworker:
        remember(url, ids)
    else:
        mark(url, ids)
    size = memory_of(url) - before
    servers.empty(url)
    return {"bytes": size / ids}


def _id_bars(table: Table) -> Sequence[Bar]:
    value = table.median("qworker", f"{_MILLION} ids", "bytes")
    return [Bar("bytes of Redis a remembered id, of a million", value, 25, at_least=False)]


IDS = Scenario(
    name="ids",
    title="bytes of Redis for a remembered id, all told",
    cases=_id_cases,
    measure=_measure_ids,
    metrics=(Metric("bytes", "bytes an id", ",.1f"),),
    amount="up to {most:,} ids",
    bars=_id_bars,
    plots=[Plot("bytes", "Redis memory of an id", "bytes", over="ids")],
)
