"""What an event costs against how many there are, of how many keys, in how many shards.

The cost should grow with the events, and with nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

from speed.contenders import Contender, qworker
from speed.draining import CPU, PER_SECOND, drained
from speed.load import Load
from speed.scenario import Bar, Case, Metric, Plot, Scale, Scenario
from speed.site import Servers
from speed.table import Table

_KEYS = (10, 100, 1_000, 10_000, 100_000)
_SHARDS = (1, 4, 8, 16, 64, 256)
_SKEWS = (0.0, 0.5, 1.0, 1.5)
_SKEWED_KEYS = 10_000
#: Events that are ahead of the handlers, in all shards: few beside all that are measured.
_AHEAD = 2_048
#: How much more the greatest may cost than the exponent says, over many powers of ten.
_FLAT, _LINEAR = 0.05, 1.05


def total(servers: Servers, case: Case) -> dict[str, float]:
    """Measure as ``drained`` does, and tell the CPU of all events too."""
    metrics = drained(servers, case)
    return {**metrics, "cpu_total": metrics["cpu"] * case.load.events / 1e6}


def case_of(what: str, x: float, contender: Contender, load: Load) -> Case:
    """Return the case of a line at ``x``."""
    return Case(name=f"{x:,g} {what}", group=contender.slug, contender=contender, load=load, x=x)


def _events(scale: Scale) -> Iterator[Case]:
    for times in (0.25, 0.5, 1, 2, 4):
        events = int(scale.events * times)
        yield case_of("events", events, qworker("redis"), Load(events=events))


def _keys(scale: Scale) -> Iterator[Case]:
    for keys in _KEYS:
        yield case_of("keys", keys, qworker("redis"), Load(events=scale.events, keys=keys))


def _skews(scale: Scale) -> Iterator[Case]:
    for skew in _SKEWS:
        load = Load(events=scale.events, keys=_SKEWED_KEYS, skew=skew)
        yield case_of("as exponent of Zipf's law", skew, qworker("redis"), load)


def _shards(scale: Scale) -> Iterator[Case]:
    for shards in _SHARDS:
        # One process, because one shard has no use for two.
        contender = qworker(
            "redis",
            shards=shards,
            processes=1,
            prefetch=min(256, _AHEAD // shards),
            slug="qworker-redis-1",
        )
        yield case_of("shards", shards, contender, Load(events=scale.events, keys=10_000))


def flat(what: str, group: str, table: Table) -> Sequence[Bar]:
    """Return the bar that the CPU of an event does not grow."""
    text = f"exponent by which the CPU of an event grows with {what}"
    return [Bar(text, table.growth(group, "cpu"), _FLAT, at_least=False)]


def _linear(table: Table) -> Sequence[Bar]:
    text = "exponent by which the CPU of all events grows with their number"
    return [Bar(text, table.growth("qworker-redis", "cpu_total"), _LINEAR, at_least=False)]


def _scenario(
    name: str, title: str, cases: Callable[[Scale], Iterable[Case]], base: str, group: str
) -> Scenario:
    return Scenario(
        name=name,
        title=title,
        cases=cases,
        measure=drained,
        metrics=(PER_SECOND, CPU),
        base=base,
        bars=partial(flat, name, group),
        plots=[Plot("cpu", title, "CPU µs an event", over=name)],
    )


SCENARIOS = (
    Scenario(
        name="events",
        amount="a quarter of {events:,} to four times as many events",
        title="CPU against the number of events",
        cases=_events,
        measure=total,
        metrics=(PER_SECOND, CPU, Metric("cpu_total", "CPU s", ",.2f")),
        bars=_linear,
        plots=[Plot("cpu_total", "CPU of all events", "CPU s", over="events")],
    ),
    _scenario("keys", "CPU of an event against keys", _keys, "10 keys", "qworker-redis"),
    _scenario("shards", "CPU of an event against shards", _shards, "1 shards", "qworker-redis-1"),
    Scenario(
        name="skew",
        title=f"some of {_SKEWED_KEYS:,} keys far more often than others",
        cases=_skews,
        measure=drained,
        metrics=(PER_SECOND, CPU),
        base="0 as exponent of Zipf's law",
    ),
)
