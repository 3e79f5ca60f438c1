"""Trial after trial, each of another seed, until so many processes were killed or the time is over.

    python tests/chaos/campaign.py --minutes 20
    python tests/chaos/campaign.py --kills 10000 --minutes 300 --record campaign.jsonl
    python tests/chaos/campaign.py --again 1234567
    python tests/chaos/campaign.py --table campaign.jsonl

A trial's workload, place, tier and faults follow from its seed (and from ``--seconds`` and
``--storms``); ``--again`` gives that trial once more. Each verdict is a line of JSON in the record,
appended as soon as it is there; ``--table`` sums up what several campaigns appended. The folder of
a trial that broke a promise is kept. Ends with 1 where one did.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from time import monotonic
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from chaos.faults.redis_clock import RedisByClock
from chaos.nemesis import FAULTS, possible
from chaos.places import Place
from chaos.stage import Stage
from chaos.trial import Plan, Verdict, run
from chaos.workloads import Bank, GitHistory, Ledger, Workload
from servers import Guard, RabbitMQ
from worker.demo.history import made_up

#: Seconds of faults in a trial, and between two of them: about, at the least and at the most.
_SECONDS = 30.0
_EVERY, _EVERY_KILL = (0.5, 2.0), (0.15, 0.4)
_HISTORY = 3000
_KEYS = (10, 100, 1000, 10_000)
_KILLING = [name for name in FAULTS if name.startswith(("kill", "crash"))]


@dataclass(frozen=True, slots=True)
class Trial:
    """All that follows from a seed."""

    plan: Plan
    workload: Workload
    #: ``servers``: RabbitMQ and Redis; ``embedded``: one SQLite file.
    place: str
    transactional: bool
    processes: int

    @classmethod
    def of(cls, seed: int, seconds: float, storms: float) -> Trial:
        """Return the trial of a seed; so large a share of all are storms, of kills alone."""
        random = Random(f"trial {seed}")
        ledger = Ledger(seed, random.choice(_KEYS))
        kinds = (ledger, Bank(seed), GitHistory(made_up(_HISTORY, seed)))
        is_storm = random.random() < storms
        plan = Plan(
            seed=seed,
            faults=(*_KILLING, "terminate") if is_storm else (),
            seconds=seconds,
            every=random.uniform(*(_EVERY_KILL if is_storm else _EVERY)),
            supervisors=random.choice([1, 2, 3]),
        )
        return cls(
            plan,
            random.choice(kinds),
            random.choice(["servers", "servers", "embedded"]),
            transactional=random.random() < 0.5,
            processes=random.choice([2, 3]),
        )

    @property
    def tier(self) -> str:
        """Where the memory of ids is."""
        if self.transactional:
            return "transaction of the handler"
        return "Redis" if self.place == "servers" else "SQLite"

    def play(self, folder: Path, guard: Guard, rabbitmq: RabbitMQ, redis: RedisByClock) -> Verdict:
        """Carry it out."""
        with ExitStack() as stack:
            where = (
                Place.on_servers(rabbitmq, redis)
                if self.place == "servers"
                else Place.on_a_file(folder)
            )
            place = stack.enter_context(where)
            shards = ("--shards", "4", "--processes", str(self.processes), "--concurrency", "8")
            stage = stack.enter_context(
                Stage(
                    folder / "stage",
                    guard,
                    self.workload,
                    place,
                    transactional=self.transactional,
                    options=shards,
                )
            )
            plan = self.plan
            if not plan.faults:
                plan = replace(plan, faults=possible(place))
            return run(stage, plan)


def record(trial: Trial, verdict: Verdict) -> dict[str, Any]:
    """Return what is kept of a trial."""
    found = verdict.findings
    return {
        "seed": trial.plan.seed,
        "workload": type(trial.workload).__name__,
        "place": trial.place,
        "tier": trial.tier,
        "held": verdict.held,
        "kills": verdict.kills,
        "crashes": dict(verdict.crashes),
        "events": verdict.published,
        "unknown": verdict.unknown,
        "executions": found.executions,
        "effects": found.effects,
        "set_aside": verdict.set_aside,
        **{name: len(facts) for name, facts in found.broken},
        "explained": len(found.explained),
        "stale": len(found.stale),
        "recovery": round(verdict.recovery, 2),
    }


def table(records: Sequence[dict[str, Any]]) -> str:
    """Return what a campaign found, as a table in Markdown."""
    groups = defaultdict[str, list[dict[str, Any]]](list)
    for each in records:
        groups[f"{each['place']}, {each['tier']}"].append(each)
    columns: dict[str, Callable[[Sequence[dict[str, Any]]], float]] = {
        "trials": len,
        "kills": lambda some: _sum(some, "kills"),
        "events": lambda some: _sum(some, "events"),
        "effects": lambda some: _sum(some, "effects"),
        "lost": lambda some: _sum(some, "lost", "stuck after the last fault"),
        "out of order": lambda some: _sum(some, "out of order"),
        "overlaps": lambda some: _sum(
            some, "two handlers of a key at once", "two processes of a shard at once"
        ),
        "fences fallen": lambda some: _sum(some, "fences that fell"),
        "second effects, unexplained": lambda some: _sum(
            some, "second effects that nothing explains"
        ),
        "in the crash window": lambda some: _sum(some, "explained"),
        "longest recovery, s": lambda some: max(each["recovery"] for each in some),
    }
    lines = [
        f"| place, memory of ids | {' | '.join(columns)} |",
        "|---|" + "---|" * len(columns),
    ]
    for name, some in [*sorted(groups.items()), ("all", [*records])]:
        cells = (f"{column(some):,}" for column in columns.values())
        lines.append(f"| {name} | {' | '.join(cells)} |")
    crashes = Counter[str]()
    for each in records:
        crashes.update(each["crashes"])
    lines += ["", "Killed at crash points:", ""]
    lines += [f"- {name.removeprefix('kill -9, ')}: {n}" for name, n in crashes.most_common()]
    return "\n".join(lines)


def _sum(records: Sequence[dict[str, Any]], *names: str) -> int:
    return sum(each[name] for each in records for name in names)


def _seeds(first: int) -> Iterator[int]:
    random = Random(first)
    yield first
    while True:
        yield random.randrange(10**9)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10**9, help="end after so many kills")
    parser.add_argument("--minutes", type=float, default=20.0, help="end after so many minutes")
    parser.add_argument("--seconds", type=float, default=_SECONDS, help="of faults, a trial")
    parser.add_argument(
        "--storms", type=float, default=0.5, help="the share of trials that are kills alone"
    )
    parser.add_argument("--seed", type=int, help="of the campaign; otherwise any")
    parser.add_argument("--again", type=int, metavar="SEED", help="this one trial once more")
    parser.add_argument("--record", type=Path, help="append a line of JSON for each trial")
    parser.add_argument("--table", type=Path, metavar="RECORD", help="only sum up a record")
    options = parser.parse_args(arguments)
    if options.table is not None:
        print(table([json.loads(line) for line in options.table.read_text().splitlines()]))
        return 0
    first = options.again or options.seed or Random().randrange(10**9)
    print(f"campaign {first}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="qworker-chaos-"))
    records: list[dict[str, Any]] = []
    end = monotonic() + options.minutes * 60
    with ExitStack() as stack:
        guard = stack.enter_context(Guard())
        for name in ("rabbitmq", "redis"):
            (folder / name).mkdir()
        rabbitmq = stack.enter_context(RabbitMQ(folder / "rabbitmq", guard))
        redis = stack.enter_context(RedisByClock(folder / "redis", guard))
        for seed in _seeds(first):
            trial = Trial.of(seed, options.seconds, options.storms)
            place = folder / f"trial-{seed}"
            place.mkdir()
            verdict = trial.play(place, guard, rabbitmq, redis)
            records.append(record(trial, verdict))
            if options.record is not None:
                with options.record.open("a") as file:
                    file.write(json.dumps(records[-1]) + "\n")
            name = f"{type(trial.workload).__name__}, {trial.place}, {trial.tier}"
            print(f"{'held  ' if verdict.held else 'BROKEN'} {name}: {verdict.line}", flush=True)
            if verdict.held:
                shutil.rmtree(place)
            else:
                print("\n".join(["", *verdict.story, f"kept in {place}", ""]), flush=True)
            enough = _sum(records, "kills") >= options.kills or monotonic() > end
            if options.again is not None or enough:
                break
    print(f"\n{table(records)}")
    return 0 if all(each["held"] for each in records) else 1


if __name__ == "__main__":
    sys.exit(main())
