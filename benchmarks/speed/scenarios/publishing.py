"""How fast publishers are: confirmed in a window, one by one, and not confirmed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from speed.arithmetic import ratio
from speed.contenders import SQLITE, Contender, kombu, peers, qworker
from speed.load import Load
from speed.scenario import Bar, Case, Metric, Plot, Scale, Scenario
from speed.site import Servers
from speed.table import Table

_WINDOW, _EACH, _NOT = "a window of confirms", "each confirmed", "not confirmed"
_CLASSIC = {"QWORKER_QUEUE_TYPE": "classic", "KOMBU_QUEUE_TYPE": "classic"}
#: So many of the events are enough where each waits.
_SLOW = 0.1


def _cases(scale: Scale) -> Iterator[Case]:
    load = Load(events=scale.events)
    slow = Load(events=int(scale.events * _SLOW), one_by_one=True)
    everyone = {peer.slug: peer for peer in peers()}
    yield _case(_WINDOW, qworker("redis"), load)
    yield _case(_WINDOW, _classic(qworker("redis")), load)
    yield _case(_WINDOW, qworker("sqlite", broker=SQLITE), load)
    yield _case(_EACH, qworker("redis"), slow)
    yield _case(_EACH, kombu(), slow)
    yield _case(_EACH, _classic(kombu()), slow)
    for slug in ("dramatiq", "faststream"):
        confirming = replace(everyone[slug], environ={"SPEED_CONFIRMS": "1"})
        yield _case(_EACH, confirming, slow)
    # The channel of taskiq's client confirms; its users cannot say otherwise.
    yield _case(_EACH, everyone.pop("taskiq"), slow)
    yield _case(_NOT, kombu(), load)
    # It publishes as with its other pool.
    del everyone["celery-threads"]
    for peer in everyone.values():
        yield _case(_NOT, peer, load)


def _classic(contender: Contender) -> Contender:
    return replace(contender, slug=f"{contender.slug}-classic", environ=_CLASSIC)


def _case(group: str, contender: Contender, load: Load) -> Case:
    return Case(name=contender.slug, group=group, contender=contender, load=load)


def _measure(servers: Servers, case: Case) -> dict[str, float]:
    with servers.site(case.contender, case.load) as site:
        took = site.fill()
    return {
        "per_second": took["events"] / took["seconds"],
        "cpu": took["cpu"] / took["events"] * 1e6,
    }


def _bars(table: Table) -> Sequence[Bar]:
    ours = table.values(_WINDOW, "qworker-redis", "per_second")
    # huey has neither a broker that could confirm, nor messages that outlive their consumer.
    best = table.best(_NOT, "per_second", lambda case: case != "kombu" and "huey" not in case)
    peer = table.values(_NOT, best, "per_second") if best else {}
    kombus = table.values(_EACH, "kombu", "per_second")
    return (
        Bar(f"confirmed, to the best peer not confirmed ({best})", ratio(ours, peer), 1),
        Bar("confirmed, to kombu's confirm_publish", ratio(ours, kombus), 5),
    )


PUBLISHING = Scenario(
    name="publishing",
    title="publishers, with confirms and without",
    cases=_cases,
    measure=_measure,
    metrics=(
        Metric("per_second", "events/s"),
        Metric("cpu", "CPU µs an event", ",.1f"),
    ),
    bars=_bars,
    plots=[Plot("per_second", "publishing", "events a second")],
)
