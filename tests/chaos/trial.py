"""One trial: a workload on a stage, faults by a seed, and the verdict."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random
from time import monotonic

from chaos.blows import thrown
from chaos.changes import changes_in
from chaos.checker import Case, Due, check
from chaos.clerk import recorded
from chaos.deaths import logs_in, lost_lines, unexplained, unexplained_ends
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
    stuck = [*settle(stage, healed), *settle_shards(stage, healed)]
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


def settle(stage: Stage, healed: float | None = None, *, gone: Collection[str] = ()) -> list[str]:
    """Wait until everything has come to its end; return what has not, in time.

    That is what has no effect and is not set aside; and then what is left in the queues, waiting or
    not acknowledged. ``healed`` is when the last fault ended: now, if nothing is said. ``gone`` are
    ids that may never come to their end.
    """
    deadline = LIVENESS + (monotonic() if healed is None else healed)
    return _unfinished(stage, deadline, gone) or _left(stage, deadline)


def _left(stage: Stage, deadline: float) -> list[str]:
    """Wait until the broker holds nothing but what is set aside; return what else it holds."""
    while (left := stage.left()) and monotonic() < deadline:
        stage.revive()
        stage.last(_PAUSE)
    return left


def under_way(stage: Stage, aside: Collection[Due] = ()) -> set[Due]:
    """Return what has to have an effect, and has none; ``aside`` is what is set aside."""
    entries = _entries(stage)
    done = {(e.handler, e.id) for e in entries if e.what == "effect"}
    return stage.workload.wanted(entries, aside) - done


def _unfinished(stage: Stage, deadline: float, gone: Collection[str]) -> list[str]:
    """Wait until everything has its effect, or is set aside; return what has not."""
    looked_at, aside = float("-inf"), set[tuple[str, str]]()
    while True:
        stage.revive()
        left = under_way(stage, aside)
        if left and monotonic() - looked_at > _LOOK:
            aside = {*stage.set_aside()}
            looked_at = monotonic()
        whole = {*gone, *(id_ for handler, id_ in aside if not handler)}
        missing = sorted(f"{h} {i}" for h, i in left - aside if i not in whole)
        if not missing or monotonic() > deadline:
            return missing
        stage.last(_PAUSE)


def settle_shards(stage: Stage, healed: float) -> list[str]:
    """Wait until no change of the number of shards is under way; return what is, in the end."""
    while (change := stage.change()) and monotonic() < healed + LIVENESS:
        stage.revive()
        stage.last(_PAUSE)
    return [f"the change of shards: {change}"] if change else []


def judge(
    stage: Stage, plan: Plan, aside: Sequence[tuple[str, str]], stuck: Sequence[str]
) -> Verdict:
    """Return the verdict on what the history of a stage tells."""
    entries = _entries(stage)
    executions, trouble = join(entries), faults(entries)
    kept = recorded(entries)
    lease_ttl, claim_ttl = stage.ttls
    published = {e.id: (e.key, e.sequence) for e in entries if e.what == "invoke"}
    confirmed = {e.id for e in entries if e.what == "confirmed"}
    abandoned = {e.id for e in entries if e.what == "abandoned"}
    found = check(
        Case(
            executions=executions,
            wanted=stage.workload.wanted(entries, {*aside}),
            faults=trouble,
            set_aside=stage.dead_letters,
            parked=stage.parked,
            hopeless=stage.workload.hopeless(entries, stage.reasons),
            parking=stage.workload.parking,
            crash_limit=stage.crash_limit,
            lease_ttl=lease_ttl,
            claim_ttl=claim_ttl,
            optional={published[id_] for id_ in published.keys() - confirmed},
            unordered=stage.workload.unordered,
            single_active=stage.single_active,
            transactional=stage.database is not None,
            published=published,
            sent=_sent(entries),
            children=stage.workload.children(entries),
            reasons=stage.reasons,
            changes=changes_in(entries),
            published_again=stage.workload.published_again(entries),
            recorded=kept,
            parents=stage.workload.parents,
            concurrency=stage.concurrency,
        )
    )
    harm = toll(executions, trouble, thrown(entries))
    unheard = published.keys() - confirmed - abandoned
    found.stuck = [*stuck, *(f"not confirmed {i}" for i in sorted(unheard))]
    found.torn = lost_lines(stage.history.torn, stage.history.entries(), trouble)
    found.wrong = [
        *stage.workload.mistakes(entries, stage.database, {*aside}),
        *stage.wrong,
        *too_few(plan, len(confirmed), found.effects),
        *unharmed(plan, harm),
        *([] if kept or not found.effects else ["nobody noted what the dedup store recorded"]),
        *unexplained_ends(stage.ends, trouble),
        *unexplained(logs_in(stage.folder), trouble, stage.asked),
    ]
    return Verdict(
        plan,
        found,
        [] if found.held else story(found, entries, trouble),
        timeline(plan.schedule, entries, executions, trouble),
        published=len(confirmed),
        unknown=sum(e.what in ("unknown", "abandoned") for e in entries),
        set_aside=len(aside),
        toll=harm,
    )


def too_few(plan: Plan, events: int, effects: int) -> list[str]:
    """Tell where so little happened in a trial that it shows nothing."""
    least = max(1.0, _LEAST * plan.rate * plan.seconds)
    return [
        f"there are only {number} {what}, where {least:g} are the least"
        for what, number in (("confirmed events", events), ("effects", effects))
        if number < least
    ]


def unharmed(plan: Plan, harm: Toll) -> list[str]:
    """Tell where faults were planned, and none of them met anybody."""
    return ["no fault met anybody"] if plan.schedule and not any(harm.faults.values()) else []


def _sent(entries: Sequence[Entry]) -> dict[str, float]:
    """Return when publishers sent each id for the first time."""
    return {entry.id: entry.at for entry in reversed(entries) if entry.what == "invoke"}


def _entries(stage: Stage) -> list[Entry]:
    """Return the history, with the effects that the database has, in order of time."""
    entries = stage.history.entries()
    if stage.database is None:
        return entries
    return sorted([*entries, *stage.database.effects()], key=lambda entry: entry.at)
