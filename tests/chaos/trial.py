"""One trial: a workload on a stage, faults by a seed, and the verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random
from time import monotonic

from chaos.blows import thrown
from chaos.checker import Case, check
from chaos.deaths import logs_in, unexplained
from chaos.executions import faults, join
from chaos.findings import Findings
from chaos.history import Entry
from chaos.nemesis import FAULTS, Blow, Fault, Nemesis, schedule
from chaos.stage import LIVENESS, Stage
from chaos.story import story
from chaos.timeline import timeline
from chaos.toll import Toll, toll

#: Seconds for which publishers go on after the last fault.
_CALM = 1.0
#: Seconds between two looks at the history.
_PAUSE = 0.25
#: Seconds between two looks at what is set aside: a look takes half a second of a core.
_LOOK = 2.0
#: The share of the events that publishers would publish, were there no faults, that has to be
#: confirmed, and to have effects. The worst trials that were seen reach eight times that.
_LEAST = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a trial does; all of it follows from here."""

    seed: int
    #: The names of the faults that may happen.
    faults: Sequence[str] = ()
    seconds: float = 20.0
    #: Seconds between two faults, about.
    every: float = 2.0
    #: Faults at once, at most: more of them wait for their turn.
    at_once: int = 4
    supervisors: int = 2
    publishers: int = 3
    #: Events a second.
    rate: float = 60.0

    @property
    def schedule(self) -> list[Blow]:
        """What happens when."""
        if not self.faults:
            return []
        return schedule(self.seed, self.faults, seconds=self.seconds, every=self.every)


@dataclass(slots=True)
class Verdict:
    """What came of a trial."""

    plan: Plan
    findings: Findings
    #: Of what is broken.
    story: list[str] = field(default_factory=list)
    #: Of all that happened, also where nothing is broken.
    timeline: list[str] = field(default_factory=list)
    published: int = 0
    #: Publications of which nobody heard whether the broker has them, for a while or for ever.
    unknown: int = 0
    set_aside: int = 0
    toll: Toll = field(default_factory=Toll)
    #: Seconds from the end of the faults until everything had come to its end.
    recovery: float = 0.0
    #: What went wrong with the harness itself, so that nothing could be judged.
    error: str = ""

    @property
    def held(self) -> bool:
        """Whether every promise was held, and seen to be."""
        return self.findings.held and not self.error

    @property
    def line(self) -> str:
        """All of it in one line."""
        if self.error:
            return f"seed {self.plan.seed}: the harness failed, {self.error}"
        found = self.findings
        return (
            f"seed {self.plan.seed}: {self.published} events,"
            f" {sum(self.toll.faults.values())} faults, {self.toll.kills} kills,"
            f" {self.toll.at_work} of them at work, {found.effects} effects,"
            f" {self.toll.pace:.0f} a second under fire, {self.set_aside} set aside,"
            f" lost {len(found.lost)}, out of order {len(found.out_of_order)},"
            f" overlaps {len(found.key_overlaps) + len(found.owner_overlaps)},"
            f" fences fallen {len(found.fallen_fences)},"
            f" second effects {len(found.explained)} + {len(found.repeated)} unexplained,"
            f" up to {max(found.ages, default=0.0):.3f} s old,"
            f" recovered in {self.recovery:.1f} s"
        )


def run(stage: Stage, plan: Plan, available: Mapping[str, Fault] = FAULTS) -> Verdict:
    """Carry a trial out. The stage is new, and ended when this returns."""
    blows = plan.schedule
    (stage.folder / "schedule").write_text("\n".join(map(str, blows)))
    for number in range(plan.supervisors):
        stage.join(f"supervisor-{number}")
    stage.until_ready()
    with stage.load(publishers=plan.publishers, rate=plan.rate):
        told = {name: partial(_throw, name, fault) for name, fault in available.items()}
        Nemesis(stage, told, plan.at_once).strike(blows)
        healed = monotonic()
        stage.last(_CALM)
    stuck = settle(stage, healed)
    recovery = monotonic() - healed
    aside = stage.set_aside()
    stage.drain()
    verdict = judge(stage, plan, aside, stuck)
    (stage.folder / "timeline").write_text("\n".join(verdict.timeline))
    verdict.recovery = recovery
    return verdict


def _throw(name: str, fault: Fault, stage: Stage, random: Random) -> None:
    """Carry out a fault, and have it noted as a blow."""
    with stage.blow(name):
        fault(stage, random)


def settle(stage: Stage, healed: float | None = None) -> list[str]:
    """Wait until everything has come to its end; return what has not, in time.

    ``healed`` is when the last fault ended: now, if nothing is said.
    """
    deadline = LIVENESS + (monotonic() if healed is None else healed)
    looked_at, aside = float("-inf"), set[tuple[str, str]]()
    while True:
        stage.revive()
        entries = _entries(stage)
        done = {(e.handler, e.id) for e in entries if e.what == "effect"}
        left = stage.workload.wanted(entries, aside) - done
        if left and monotonic() - looked_at > _LOOK:
            aside = {*stage.set_aside()}
            looked_at = monotonic()
        whole = {id_ for handler, id_ in aside if not handler}
        missing = sorted(f"{h} {i}" for h, i in left - aside if i not in whole)
        if not missing or monotonic() > deadline:
            return missing
        stage.last(_PAUSE)


def judge(
    stage: Stage, plan: Plan, aside: Sequence[tuple[str, str]], stuck: Sequence[str]
) -> Verdict:
    """Return the verdict on what the history of a stage tells."""
    entries = _entries(stage)
    executions, trouble = join(entries), faults(entries)
    published = {e.id: (e.key, e.sequence) for e in entries if e.what == "invoke"}
    confirmed = {e.id for e in entries if e.what == "confirmed"}
    found = check(
        Case(
            executions=executions,
            wanted=stage.workload.wanted(entries, {*aside}),
            faults=trouble,
            set_aside=stage.dead_letters,
            parked=stage.parked,
            optional={published[id_] for id_ in published.keys() - confirmed},
            unordered=stage.workload.unordered,
            transactional=stage.database is not None,
            published=published,
            published_again=_again(entries),
            parents=stage.workload.parents,
            concurrency=stage.concurrency,
        )
    )
    found.stuck = [*stuck, *(f"not confirmed {i}" for i in sorted(published.keys() - confirmed))]
    found.wrong = [
        *stage.workload.mistakes(entries, stage.database, {*aside}),
        *stage.wrong,
        *too_few(plan, len(confirmed), found.effects),
        *unexplained(logs_in(stage.folder), trouble),
    ]
    return Verdict(
        plan,
        found,
        [] if found.held else story(found, entries, trouble),
        timeline(plan.schedule, entries, executions, trouble),
        published=len(confirmed),
        unknown=sum(e.what == "unknown" for e in entries),
        set_aside=len(aside),
        toll=toll(executions, trouble, thrown(entries)),
    )


def too_few(plan: Plan, events: int, effects: int) -> list[str]:
    """Tell where so little happened in a trial that it shows nothing."""
    least = _LEAST * plan.rate * plan.seconds
    return [
        f"there are only {number} {what}, where {least:g} are the least"
        for what, number in (("confirmed events", events), ("effects", effects))
        if number < least
    ]


def _again(entries: Sequence[Entry]) -> set[str]:
    """Return the ids that publishers sent more than once, since they heard of no confirm."""
    times = Counter(entry.id for entry in entries if entry.what == "invoke")
    return {id_ for id_, number in times.items() if number > 1}


def _entries(stage: Stage) -> list[Entry]:
    """Return the history, with the effects that the database has, in order of time."""
    entries = stage.history.entries()
    if stage.database is None:
        return entries
    return sorted([*entries, *stage.database.effects()], key=lambda entry: entry.at)
