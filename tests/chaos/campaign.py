"""Trial after trial, each of another seed, until so many processes were killed or the time is over.

    python tests/chaos/campaign.py --minutes 20
    python tests/chaos/campaign.py --storms 1 --seconds 120 --kills 10000 --minutes 120
    python tests/chaos/campaign.py --minutes 240 --record campaign.jsonl
    python tests/chaos/campaign.py --again 1234567
    python tests/chaos/campaign.py --table campaign.jsonl

A trial's workload, place, tier and faults follow from its seed (and from ``--seconds`` and
``--storms``); ``--again`` gives that trial once more. Each verdict is a line of JSON in the record,
appended as soon as it is there; ``--table`` sums up what several campaigns appended. The folder of
a trial that broke a promise is kept. Ends with 1 where one did, or where the harness itself failed:
that is told, and the next trial begins.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from time import monotonic
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from chaos.faults.redis_clock import RedisByClock
from chaos.findings import Findings
from chaos.nemesis import possible
from chaos.places import Place
from chaos.record import ERROR, held, record, table, total
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
#: So many trials in a row that the harness could not carry out are the machine's fault.
_HOPELESS = 3
#: What a storm is made of. One process alone is killed most often: its supervisor has the next one
#: ready soon, while the work of a whole supervisor waits until its leases have ended.
_STORM: Sequence[str] = (
    *["kill one child alone, at work"] * 8,
    "kill one child alone",
    "kill the supervisor alone, at work",
    "kill all of it, at work",
    "kill all of it",
    *["crash points"] * 3,
    "terminate",
)


@dataclass(frozen=True, slots=True)
class Trial:
    """All that follows from a seed."""

    plan: Plan
    workload: Workload
    #: ``servers``: RabbitMQ and Redis; ``embedded``: one SQLite file.
    place: str
    transactional: bool
    processes: int
    shards: int
    #: After so many deaths of its process a message is a dead letter. Innocent ones die often in a
    #: storm.
    crash_limit: int

    @classmethod
    def of(cls, seed: int, seconds: float, storms: float) -> Trial:
        """Return the trial of a seed; so large a share of all are storms, of kills alone."""
        random = Random(f"trial {seed}")
        ledger = Ledger(seed, random.choice(_KEYS))
        kinds = (ledger, Bank(seed), GitHistory(made_up(_HISTORY, seed)))
        is_storm = random.random() < storms
        plan = Plan(
            seed=seed,
            faults=_STORM if is_storm else (),
            seconds=seconds,
            every=random.uniform(*(_EVERY_KILL if is_storm else _EVERY)),
            at_once=8 if is_storm else 4,
            supervisors=random.choice([2, 3] if is_storm else [1, 2, 3]),
        )
        return cls(
            plan,
            random.choice(kinds),
            random.choice(["servers", "servers", "embedded"]),
            transactional=random.random() < 0.5,
            processes=4 if is_storm else random.choice([2, 3]),
            # Every process has some, so that all are at work, and every death leaves some behind.
            shards=12 if is_storm else 4,
            crash_limit=100 if is_storm else 3,
        )

    @property
    def tier(self) -> str:
        """Where the memory of ids is."""
        if self.transactional:
            return "transaction of the handler"
        return "Redis" if self.place == "servers" else "SQLite"

    @property
    def facts(self) -> dict[str, Any]:
        """What is kept of it."""
        name = type(self.workload).__name__
        return {"workload": name, "place": self.place, "tier": self.tier}

    def play(self, folder: Path, guard: Guard, rabbitmq: RabbitMQ, redis: RedisByClock) -> Verdict:
        """Carry it out."""
        with ExitStack() as stack:
            where = (
                Place.on_servers(rabbitmq, redis)
                if self.place == "servers"
                else Place.on_a_file(folder)
            )
            place = stack.enter_context(where)
            numbers = {"shards": self.shards, "processes": self.processes}
            stage = stack.enter_context(
                Stage(
                    folder / "stage",
                    guard,
                    self.workload,
                    place,
                    transactional=self.transactional,
                    options=tuple(f"--{name}={number}" for name, number in numbers.items()),
                    crash_limit=self.crash_limit,
                )
            )
            plan = self.plan
            if not plan.faults:
                plan = replace(plan, faults=possible(place))
            return run(stage, plan)


def carry_out(trial: Trial, folder: Path, play: Callable[[], Verdict]) -> dict[str, Any]:
    """Carry a trial out in its folder and tell what came of it; return what is kept of it.

    An error of the harness breaks the trial, and the trial alone.
    """
    folder.mkdir()
    try:
        verdict = play()
        if verdict.held:
            shutil.rmtree(folder)
    except Exception as error:  # noqa: BLE001 - whatever it is, the next trial has another seed
        verdict = failed(trial.plan, error)
    name = f"{type(trial.workload).__name__}, {trial.place}, {trial.tier}"
    print(f"{'held  ' if verdict.held else 'BROKEN'} {name}: {verdict.line}", flush=True)
    if not verdict.held:
        print("\n".join(["", *verdict.story, f"kept in {folder}", ""]), flush=True)
    return record(trial.facts, verdict)


def failed(plan: Plan, error: Exception) -> Verdict:
    """Return the verdict on a trial that the harness could not carry out."""
    story = "".join(traceback.format_exception(error)).splitlines()
    return Verdict(plan, Findings(), story, error=f"{type(error).__name__}: {error}")


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
        records = [json.loads(line) for line in options.table.read_text().splitlines()]
    else:
        records = _campaign(options)
    print(f"\n{table(records)}")
    return 0 if held(records) else 1


def _campaign(options: argparse.Namespace) -> list[dict[str, Any]]:
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
            play = partial(trial.play, place, guard, rabbitmq, redis)
            records.append(carry_out(trial, place, play))
            if options.record is not None:
                with options.record.open("a") as file:
                    file.write(json.dumps(records[-1]) + "\n")
            if all(each[ERROR] for each in records[-_HOPELESS:]) and len(records) >= _HOPELESS:
                print(f"{_HOPELESS} errors of the harness in a row: it goes on no more")
                break
            enough = total(records, "kills") >= options.kills or monotonic() > end
            if options.again is not None or enough:
                break
    return records


if __name__ == "__main__":
    sys.exit(main())
