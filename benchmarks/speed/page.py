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

from speed.contenders import contenders
from speed.results import FOLDER, Record, path_of, read
from speed.scenario import Plot, Scenario
from speed.scenarios import SCENARIOS
from speed.table import Table, markdown, told

PAGE = Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md"
#: Below the folder of the page.
_IMAGES = "images"
_BLOCK = re.compile(r"(<!-- speed: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
#: What more than one of them is made of.
_BENEATH = ("kombu", "amqp", "redis", "pika", "aio-pika", "taskiq-aio-pika")
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
        path = path_of("throughput" if name == "contenders" else name, options.results)
        if not path.exists():
            return None
        record = read(path)
        return settings(record) if name == "contenders" else section(SCENARIOS[name], record)

    PAGE.write_text(filled(PAGE.read_text(), block))


def filled(page: str, block: Callable[[str], str | None]) -> str:
    """Return the page with every block that there is something for."""

    def one(found: re.Match[str]) -> str:
        begin, name, end = found.groups()
        content = block(name)
        return found[0] if content is None else f"{begin}{content}\n{end}"

    return _BLOCK.sub(one, page)


def settings(record: Record) -> str:
    """Return who takes part, in which version, and how each is started."""
    versions: Mapping[str, str] = record.environment["versions"]
    lines = ["| name | version | command | settings |", "| --- | --- | --- | --- |"]
    for each in contenders():
        if not each.mark:
            made_of = f"{each.distribution} {versions.get(each.distribution, '')}"
            command = " ".join(each.command)
            lines.append(f"| {each.slug} | {made_of} | `{command}` | {each.settings} |")
    beside = ", ".join(f"{name} {versions[name]}" for name in _BENEATH if name in versions)
    return "\n".join([*lines, "", f"Beneath them: {beside}."])


def section(scenario: Scenario, record: Record) -> str:
    """Return what a scenario gave: how it was run, pictures, table, bars."""
    table = Table(record.results)
    pictures = [_picture(scenario.name, plot, table) for plot in scenario.plots]
    parts = [
        conditions(record, scenario.amount),
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


def conditions(record: Record, amount: str) -> str:
    """Return how the figures were taken, and how far they can be trusted."""
    facts = record.environment
    machine = f"{facts['cores']} cores ({facts['processor']}), Python {facts['python']}"
    rounds = f"{facts['rounds']} round{'' if facts['rounds'] == 1 else 's'}"
    text = (
        f"{facts['at'][:10]}, {rounds} of {amount.format(**facts)}; {machine},"
        f" RabbitMQ {facts['RabbitMQ']}, Redis {facts['Redis server']}."
        f" Load of the machine at the end of a run: {_busy(record)}."
    )
    if facts["rounds"] < _ENOUGH_ROUNDS:
        text += " **A short run on a machine with other work: orders of magnitude, no more.**"
    return text


def _busy(record: Record) -> str:
    loads = [each.busy for each in record.results]
    return f"{statistics.median(loads):.1f} (up to {max(loads):.1f})"


if __name__ == "__main__":
    main()
