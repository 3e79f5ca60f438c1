"""Trial after trial, each of another seed, until so many processes were killed or the time is over.

    python tests/chaos/campaign.py --minutes 20
    python tests/chaos/campaign.py --storms 1 --seconds 120 --kills 10000 --minutes 120
    python tests/chaos/campaign.py --minutes 240 --record campaign.jsonl
    python tests/chaos/campaign.py --again 1234567 --story
    python tests/chaos/campaign.py --table campaign.jsonl

A trial's workload, place, tier and faults follow from its seed (and from ``--seconds`` and
``--storms``); ``--again`` gives that trial once more. Each verdict is a line of JSON in the record,
appended as soon as it is there; ``--table`` sums up what several campaigns appended. The folder of
a trial that broke a promise is kept. Ends with 1 where one did, or where the harness itself failed:
that is told, and the next trial begins. ``--help`` tells the rest (:mod:`chaos.usage`).
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from time import monotonic
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from chaos.faults.redis_clock import RedisByClock
from chaos.findings import Findings
from chaos.nemesis import left_out, possible
from chaos.places import Place
from chaos.record import ERROR, held, record, table, total
from chaos.stage import Stage
from chaos.trial import Plan, Verdict, run
from chaos.usage import BROKEN, HELD, INTERRUPTED, parse
from chaos.workloads import Bank, GitHistory, Ledger, Workload
from servers import Guard, RabbitMQ
from worker.demo.history import made_up

#: Seconds between two faults: about, at the least and at the most.
_EVERY, _EVERY_KILL = (0.5, 2.0), (0.15, 0.4)
_HISTORY = 3000
_KEYS = (10, 100, 1000, 10_000)
#: The share of trials, but of storms, in which one process at a time consumes everything.
_SINGLE_ACTIVE = 0.15
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
    #: One process at a time consumes all shards.
    single_active: bool

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
        made = cls(
            plan,
            random.choice(kinds),
            random.choice(["servers", "servers", "embedded"]),
            transactional=random.random() < 0.5,
            processes=4 if is_storm else random.choice([2, 3]),
            # Every process has some, so that all are at work, and every death leaves some behind.
            shards=12 if is_storm else 4,
            crash_limit=100 if is_storm else 3,
            single_active=False,
        )
        if not is_storm and random.random() < _SINGLE_ACTIVE:
            return replace(made, single_active=True, processes=1)
        return made

    @property
    def tier(self) -> str:
        """Where the memory of ids is."""
        if self.transactional:
            return "transaction of the handler"
        return "Redis" if self.place == "servers" else "SQLite"

    @property
    def name(self) -> str:
        """What it is, as its lines begin."""
        return f"{type(self.workload).__name__}, {self.place}, {self.tier}"

    @property
    def outlook(self) -> str:
        """What is told of it before it is over."""
        plan = self.plan
        number = f"{plan.supervisors} supervisor{'s' if plan.supervisors > 1 else ''}"
        what = "a storm of kills" if plan.faults else "faults of every kind"
        if left_out := self.left_out:
            what += f" but {', '.join(left_out)}, which takes the right to mount a disk"
        several = (
            "a process, single-active" if self.single_active else f"{self.processes} processes"
        )
        return f"seed {plan.seed}, {number} of {several}, {plan.seconds:g} s of {what}"

    @property
    def left_out(self) -> list[str]:
        """The faults that it would have, were they to be had here."""
        is_embedded = self.place == "embedded" and not self.plan.faults
        return left_out() if is_embedded else []

    @property
    def facts(self) -> dict[str, Any]:
        """What is kept of it."""
        name = type(self.workload).__name__
        return {
            "workload": name,
            "place": self.place,
            "tier": self.tier,
            "single_active": self.single_active,
            "left_out": self.left_out,
        }

    def play(self, folder: Path, guard: Guard, rabbitmq: RabbitMQ, redis: RedisByClock) -> Verdict:
        """Carry it out."""
        with ExitStack() as stack:
            stack.enter_context(publishers_log(folder / "publishers.log"))
            where = (
                Place.on_servers(rabbitmq, redis)
                if self.place == "servers"
                else Place.on_a_file(folder)
            )
            place = stack.enter_context(where)
            stage = stack.enter_context(
                Stage(
                    folder / "stage",
                    guard,
                    self.workload,
                    place,
                    transactional=self.transactional,
                    options=(
                        f"--processes={self.processes}",
                        *(["--single-active"] if self.single_active else []),
                    ),
                    crash_limit=self.crash_limit,
                    shards=self.shards,
                )
            )
            plan = self.plan
            if not plan.faults:
                plan = replace(plan, faults=possible(place))
            return run(stage, plan)


@contextmanager
def publishers_log(file: Path) -> Iterator[None]:
    """Keep what publishers say, which are in this process: that the broker does not answer.

    A trial sees to that itself, so these lines say nothing to who reads those of the trials.
    """
    logger, handler = logging.getLogger("worker"), logging.FileHandler(file)
    handler.setFormatter(logging.Formatter("%(asctime)s %(threadName)s: %(message)s"))
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()


def carry_out(
    trial: Trial, folder: Path, play: Callable[[], Verdict], into: str | None = None
) -> dict[str, Any]:
    """Carry a trial out in its folder and tell what came of it; return what is kept of it.

    An error of the harness breaks the trial, and the trial alone. ``into``: a file for all that
    happened, or ``-``.
    """
    _say(f"runs   {trial.name}: {trial.outlook}")
    folder.mkdir()
    try:
        verdict = play()
        if verdict.held:
            shutil.rmtree(folder)
    except Exception as error:  # noqa: BLE001 - whatever it is, the next trial has another seed
        verdict = failed(trial.plan, error)
    line = f"{'held  ' if verdict.held else 'BROKEN'} {trial.name}: {verdict.line}"
    _say(line)
    if not verdict.held:
        _say("", *verdict.story, f"kept in {folder}", "")
    if into == "-":
        _say("", *verdict.timeline, "")
    elif into is not None:
        with Path(into).open("a") as file:
            file.write("\n".join([line, *verdict.timeline, "", ""]))
    return record(trial.facts, verdict)


def _say(*lines: str) -> None:
    """Print lines at once, also into a file that somebody follows."""
    print("\n".join(lines), flush=True)


def failed(plan: Plan, error: Exception) -> Verdict:
    """Return the verdict on a trial that the harness could not carry out."""
    story = "".join(traceback.format_exception(error)).splitlines()
    return Verdict(plan, Findings(), story, error=f"{type(error).__name__}: {error}")


def commit() -> str:
    """Return which tree this is, with ``-dirty`` where it was changed; empty where nobody knows."""
    here = Path(__file__).parent
    command = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
    except OSError:  # there is no git
        return ""
    return done.stdout.strip()


def _seeds(first: int) -> Iterator[int]:
    random = Random(first)
    yield first
    while True:
        yield random.randrange(10**9)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it."""
    options = parse(arguments)
    records: list[dict[str, Any]] = []
    is_interrupted = False
    if options.table is not None:
        records += map(json.loads, options.table.read_text().splitlines())
    else:
        try:
            _campaign(options, records)
        except KeyboardInterrupt:
            is_interrupted = True
    _say("", table(records))
    if is_interrupted:
        return INTERRUPTED
    return HELD if held(records) else BROKEN


def _campaign(options: argparse.Namespace, records: list[dict[str, Any]]) -> None:
    """Run trials until it is enough; adds what is kept of each."""
    seed = options.seed if options.again is None else options.again
    first = Random().randrange(10**9) if seed is None else seed
    folder = Path(tempfile.mkdtemp(prefix="qworker-chaos-"))
    _say(f"campaign {first}, in {folder}")
    end = monotonic() + options.minutes * 60
    same = {"commit": commit(), "seconds": options.seconds, "storms": options.storms}
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
            records.append(same | carry_out(trial, place, play, options.story))
            if options.record is not None:
                with options.record.open("a") as file:
                    file.write(json.dumps(records[-1]) + "\n")
            if not records[-1]["held"]:
                given = f"--seconds {options.seconds:g} --storms {options.storms:g}"
                _say(f"once more: campaign.py --again {seed} {given}")
            if all(each[ERROR] for each in records[-_HOPELESS:]) and len(records) >= _HOPELESS:
                _say(f"{_HOPELESS} errors of the harness in a row: it goes on no more")
                break
            is_enough = options.kills is not None and total(records, "kills") >= options.kills
            if options.again is not None or is_enough or monotonic() > end:
                break


if __name__ == "__main__":
    sys.exit(main())
