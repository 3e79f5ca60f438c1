"""Starts and ends: to the first event, to the help of the command line, and from SIGTERM on."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from speed.contenders import SQLITE, Contender, peers, qworker
from speed.load import SLEEPING, Load
from speed.scenario import Bar, Case, Metric, Plot, Scale, Scenario
from speed.site import Servers, Unfinished
from speed.table import Table

#: Console scripts beside the interpreter, by distribution.
_SCRIPTS = {"qworker-runtime": "qworker", "huey": "huey_consumer"}
_HELPS = 5


def _everyone() -> Iterator[Contender]:
    yield qworker("redis")
    yield qworker("sqlite", broker=SQLITE)
    yield from peers()


def _start_cases(_: Scale) -> Iterator[Case]:
    for contender in _everyone():
        yield Case(name=contender.slug, contender=contender, load=Load(events=1))


def _measure_start(servers: Servers, case: Case) -> dict[str, float]:
    with servers.site(case.contender, case.load) as site:
        site.fill()
        with site.at_work() as worker:
            first = worker.reach(1)
            return {"first": first.at - worker.began, "cpu": first.cpu}


START = Scenario(
    name="start",
    title="from the command to the first event",
    cases=_start_cases,
    measure=_measure_start,
    metrics=(Metric("first", "s to the first event", ",.2f"), Metric("cpu", "CPU s", ",.2f")),
    plots=[Plot("first", "from the command to the first event", "s")],
)


def _help_cases(_: Scale) -> Iterator[Case]:
    for contender in {each.distribution: each for each in _everyone()}.values():
        name = _SCRIPTS.get(contender.distribution, contender.distribution)
        yield Case(name=name, contender=contender, load=Load(events=1))


def _measure_help(_: Servers, case: Case) -> dict[str, float]:
    command = [str(Path(sys.executable).with_name(case.name)), "--help"]
    times: list[float] = []
    while len(times) < _HELPS:
        began = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        times.append(1e3 * (time.monotonic() - began))
        if done.returncode:
            raise Unfinished(done.stderr)
    return {"help": statistics.median(times)}


def _help_bars(table: Table) -> Sequence[Bar]:
    return [Bar("ms of qworker --help", table.median("", "qworker", "help"), 150, at_least=False)]


HELP = Scenario(
    name="help",
    title="the time of --help",
    cases=_help_cases,
    measure=_measure_help,
    metrics=(Metric("help", "ms"),),
    bars=_help_bars,
)


def _drain_cases(scale: Scale) -> Iterator[Case]:
    load = Load(events=scale.events, work=SLEEPING)
    for contender in _everyone():
        yield Case(name=contender.slug, contender=contender, load=load)


def _measure_drain(servers: Servers, case: Case) -> dict[str, float]:
    """Send SIGTERM while a tenth is done and the queue is full."""
    with servers.site(case.contender, case.load) as site:
        site.fill()
        with site.at_work() as worker:
            worker.reach(site.load.events // 10)
            before = worker.count
            seconds, code = worker.drain()
            return {"drain": seconds, "code": code, "after": worker.count - before}


DRAIN = Scenario(
    name="drain",
    title="from SIGTERM to the end, under load",
    cases=_drain_cases,
    measure=_measure_drain,
    metrics=(
        Metric("drain", "s to the end", ",.2f"),
        Metric("code", "exit code"),
        Metric("after", "events after the signal"),
    ),
)

SCENARIOS = (START, HELP, DRAIN)
