"""Puts the results that are kept into docs/benchmarks.md, with their pictures.

PYTHONPATH=benchmarks:tests .venv-peers/bin/python -m speed.page [--results FOLDER]

The page has a block for each scenario, between ``<!-- speed: NAME -->`` and ``<!-- end -->``. What
stands in one whose results are not there stays as it is.
"""

from __future__ import annotations

import argparse
import re
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from speed.contenders import contenders
from speed.results import FOLDER, Record, path_of, read
from speed.scenario import Plot, Scenario
from speed.scenarios import SCENARIOS
from speed.table import Table, markdown, told

PAGE = Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md"
#: Below the folder of the page.
_IMAGES = "images"
_BLOCK = re.compile(r"(<!-- speed: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
#: With fewer, one noisy moment is the figure.
_ENOUGH_ROUNDS = 3


def main() -> None:
    """Rewrite the page."""
    parser = argparse.ArgumentParser(
        prog="python -m speed.page",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--results", type=Path, default=FOLDER)
    options = parser.parse_args()

    def block(name: str) -> str | None:
        if name == "contenders":
            return settings()
        path = path_of(name, options.results)
        return section(SCENARIOS[name], read(path)) if path.exists() else None

    PAGE.write_text(filled(PAGE.read_text(), block))


def filled(page: str, block: Callable[[str], str | None]) -> str:
    """Return the page with every block that there is something for."""

    def one(found: re.Match[str]) -> str:
        begin, name, end = found.groups()
        content = block(name)
        return found[0] if content is None else f"{begin}{content}\n{end}"

    return _BLOCK.sub(one, page)


def settings() -> str:
    """Return who takes part, and how each is started."""
    lines = ["| name | command | settings |", "| --- | --- | --- |"]
    for each in contenders():
        if not each.mark:
            command = " ".join(each.command)
            lines.append(f"| {each.slug} | `{command}` | {each.settings} |")
    return "\n".join(lines)


def section(scenario: Scenario, record: Record) -> str:
    """Return what a scenario gave: how it was run, pictures, table, bars."""
    table = Table(record.results)
    pictures = [_picture(scenario.name, plot, table) for plot in scenario.plots]
    parts = [
        conditions(record),
        *pictures,
        markdown(table, scenario.metrics, scenario.base),
        told(scenario.bars(table)),
    ]
    return "\n\n".join(filter(None, parts))


def _picture(name: str, plot: Plot, table: Table) -> str:
    """Draw it; return what shows it on the page."""
    from speed.plots import draw  # noqa: PLC0415 - matplotlib is there for `make bench` alone

    file = f"{_IMAGES}/speed-{name}-{plot.metric}.svg"
    draw(plot, table, PAGE.parent / file)
    shown = f"{plot.title}: {plot.axis} {f'over {plot.over}' if plot.over else 'by case'}"
    return f"![{shown}]({file})"


def conditions(record: Record) -> str:
    """Return how the figures were taken, and how far they can be trusted."""
    facts = record.environment
    servers = f"RabbitMQ {facts['RabbitMQ']}, Redis {facts['Redis server']}"
    text = (
        f"{facts['at']}, {facts['rounds']} rounds, {facts['cores']} cores ({facts['processor']}),"
        f" Python {facts['python']}, {servers}; {_versions(facts)}. Load of the machine at the end"
        f" of a run: {_busy(record)}."
    )
    if facts["rounds"] < _ENOUGH_ROUNDS:
        text += " **A short run on a machine with other work: orders of magnitude, no more.**"
    return text


def _versions(facts: Mapping[str, Any]) -> str:
    versions: Mapping[str, str] = facts["versions"]
    return ", ".join(f"{name} {number}" for name, number in versions.items())


def _busy(record: Record) -> str:
    loads = [each.busy for each in record.results]
    return f"{statistics.median(loads):.1f} (up to {max(loads):.1f})"


if __name__ == "__main__":
    main()
