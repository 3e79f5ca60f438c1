"""Throughput by the length of the bodies."""

from __future__ import annotations

from collections.abc import Iterator

from speed.contenders import kombu, peers, qworker
from speed.draining import CPU, PER_SECOND, drained
from speed.load import Load
from speed.scenario import Case, Scale, Scenario

_KIBI = 1024
#: By length, and which share of the events: 64 KiB each would fill the disk.
_BODIES = {"100 B": (100, 1.0), "1 KiB": (_KIBI, 1.0), "64 KiB": (64 * _KIBI, 0.1)}
_PEERS = ("celery-threads", "dramatiq", "faststream", "taskiq")


def _cases(scale: Scale) -> Iterator[Case]:
    chosen = [kombu(), qworker("redis"), *(each for each in peers() if each.slug in _PEERS)]
    for group, (body, share) in _BODIES.items():
        load = Load(events=int(scale.events * share), body=body)
        for contender in chosen:
            yield Case(name=contender.slug, group=group, contender=contender, load=load)


BODIES = Scenario(
    name="bodies",
    title="bodies of 100 bytes to 64 KiB",
    cases=_cases,
    measure=drained,
    metrics=(PER_SECOND, CPU),
    base="qworker-redis",
)
