"""Measures qworker and its peers side by side: what `make bench` runs.

PYTHONPATH=benchmarks:tests .venv-peers/bin/python -m speed [SCENARIO …] [--rounds 5] [--only …]
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from fnmatch import fnmatch
from pathlib import Path

from speed.results import FOLDER, Record, Result, environment, path_of, write
from speed.scenario import Case, Scale, Scenario
from speed.scenarios import SCENARIOS
from speed.site import Servers, Unfinished
from speed.table import Table, markdown, told


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the scenarios, print their tables and keep what they gave."""
    options = _options(arguments)
    with tempfile.TemporaryDirectory() as folder, Servers(Path(folder)) as servers:
        for name in options.scenarios:
            scenario = SCENARIOS[name]
            scale = _scale(scenario.scale, options)
            cases = [case for case in scenario.cases(scale) if _wanted(case, options.only)]
            facts = {"scenario": name, "rounds": options.rounds, **asdict(scale)}
            record = Record(environment(servers, facts), [])
            print(f"{name}: {scenario.title}; {len(cases)} cases", flush=True)
            for result in run(servers, scenario, cases, options.rounds):
                record.results.append(result)
                print(line(scenario, result), flush=True)
                write(path_of(name, options.results), ordered(record, cases))
            print(f"\n{report(scenario, ordered(record, cases))}\n", flush=True)


def run(
    servers: Servers, scenario: Scenario, cases: Sequence[Case], rounds: int
) -> Iterator[Result]:
    """Yield the result of every case in every round, each round in an order of its own."""
    for number in range(1, rounds + 1):
        for case in random.Random(number).sample(cases, len(cases)):
            try:
                metrics, why = dict(scenario.measure(servers, case)), ""
            except Unfinished as error:
                metrics, why = {}, str(error)
            yield Result(
                case=case.name,
                group=case.group,
                contender=case.contender.slug,
                x=case.x,
                round=number,
                finished=not why,
                metrics=metrics,
                told=why,
            )


def ordered(record: Record, cases: Sequence[Case]) -> Record:
    """Return the record with its results in the order of the cases."""
    places = {(case.group, case.name): place for place, case in enumerate(cases)}
    results = sorted(record.results, key=lambda each: (places[each.group, each.case], each.round))
    return Record(record.environment, results)


def line(scenario: Scenario, result: Result) -> str:
    """Return one run in words."""
    name = f"round {result.round}: {' '.join(filter(None, (result.group, result.case)))}"
    if not result.finished:
        return f"{name}: did not finish: {result.told}"
    told = (
        f"{format(result.metrics[metric.name], metric.format)} {metric.title}"
        for metric in scenario.metrics
        if metric.name in result.metrics
    )
    return f"{name}: {', '.join(told)}"


def report(scenario: Scenario, record: Record) -> str:
    """Return the table, and which bars were reached."""
    table = Table(record.results)
    parts = (markdown(table, scenario.metrics, scenario.base), told(scenario.bars(table)))
    return "\n\n".join(filter(None, parts))


def _scale(scale: Scale, options: argparse.Namespace) -> Scale:
    said = {name: getattr(options, name) for name in asdict(scale)}
    return replace(scale, **{name: value for name, value in said.items() if value is not None})


def _wanted(case: Case, patterns: Sequence[str]) -> bool:
    names = case.name, f"{case.group} {case.name}"
    return not patterns or any(fnmatch(name, pattern) for name in names for pattern in patterns)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    width = max(map(len, SCENARIOS))
    listed = "\n".join(f"  {name:{width}}  {each.title}" for name, each in SCENARIOS.items())
    parser = argparse.ArgumentParser(
        prog="python -m speed",
        description=f"{__doc__}\nScenarios:\n{listed}",
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", default=["throughput"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--events", type=int, help="in place of what the scenario has")
    parser.add_argument("--seconds", type=float, help="likewise, of what is measured by time")
    parser.add_argument("--most", type=int, help="likewise, how far a scenario goes up")
    only = "cases, by patterns as of a shell; of some groups alone: 'GROUP CASE'"
    parser.add_argument("--only", nargs="+", default=[], help=only)
    parser.add_argument("--results", type=Path, default=FOLDER, help="the folder to keep them in")
    options = parser.parse_args(arguments)
    if options.scenarios == ["all"]:
        options.scenarios = list(SCENARIOS)
    if unknown := [name for name in options.scenarios if name not in SCENARIOS]:
        parser.error(f"no scenario {', '.join(unknown)}: there are all, {', '.join(SCENARIOS)}")
    return options


if __name__ == "__main__":
    main()
