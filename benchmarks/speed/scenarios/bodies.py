"""Throughput by the length of the bodies."""

from __future__ import annotations

from collections.abc import Iterator

from speed.contenders import kombu, peers, qworker
from speed.draining import CPU, PER_SECOND, drained
from speed.load import Load
from speed.scenario import Case, Scale, Scenario

_KIBI = 1024
#: By length, which share of the events, and how many of them qworker has ahead in a shard. 64 KiB
#: each would fill the disk, and with its usual prefetch most of these were there before the clock
#: starts: the peers have 256 to 512 ahead.
_BODIES = {
    "100 B": (100, 1.0, 0),
    "1 KiB": (_KIBI, 1.0, 0),
    "64 KiB": (64 * _KIBI, 0.25, 32),
}
_PEERS = ("celery-threads", "dramatiq", "faststream", "taskiq")


def _cases(scale: Scale) -> Iterator[Case]:
    others = [each for each in peers() if each.slug in _PEERS]
    for group, (body, share, prefetch) in _BODIES.items():
        chosen = [kombu(), qworker("redis", prefetch=prefetch), *others]
        load = Load(events=int(scale.events * share), body=body)
        for contender in chosen:
            yield Case(name=contender.slug, group=group, contender=contender, load=load)


BODIES = Scenario(
    name="bodies",
    amount="{events:,} events, of 64 KiB a quarter of these",
    title="bodies of 100 bytes to 64 KiB",
    cases=_cases,
    measure=drained,
    metrics=(PER_SECOND, CPU),
    base="qworker-redis",
)
