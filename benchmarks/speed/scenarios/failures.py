"""When handlers fail: every event a dead letter, or every second one tried again."""

from __future__ import annotations

from collections.abc import Iterator

from speed.contenders import peers, qworker
from speed.draining import CPU, PER_SECOND, drained
from speed.load import REJECTING, RETRYING, Load
from speed.scenario import Case, Scale, Scenario

_WORKS = {"all dead letters": REJECTING, "every second one fails once": RETRYING}
#: Those that can do both: the others have no retries, or keep none of the dead.
_PEERS = ("celery-prefork", "celery-threads", "dramatiq")


def _cases(scale: Scale) -> Iterator[Case]:
    chosen = [qworker("redis"), *(each for each in peers() if each.slug in _PEERS)]
    for group, work in _WORKS.items():
        load = Load(events=scale.events, work=work)
        for contender in chosen:
            yield Case(name=contender.slug, group=group, contender=contender, load=load)


FAILURES = Scenario(
    name="failures",
    title="dead letters and retries",
    cases=_cases,
    measure=drained,
    metrics=(PER_SECOND, CPU),
    base="qworker-redis",
    scale=Scale(events=10_000),
)
