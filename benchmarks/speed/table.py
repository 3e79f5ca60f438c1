"""The results of a scenario by case and metric: medians, ratios, and how they are shown. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence

from speed.arithmetic import growth, ratio
from speed.results import Result
from speed.scenario import Bar, Metric

_UNKNOWN = "-"


class Table:
    """Asked by case, which is known by its group and its name."""

    def __init__(self, results: Sequence[Result]) -> None:
        self.results = results
        #: Every case, in the order in which it is shown.
        self.cases = list(dict.fromkeys((each.group, each.case) for each in results))

    def values(self, group: str, case: str, metric: str) -> dict[int, float]:
        """Return what each round gave that was finished."""
        return {
            each.round: each.metrics[metric]
            for each in self._of(group, case)
            if each.finished and metric in each.metrics
        }

    def median(self, group: str, case: str, metric: str) -> float | None:
        """Return it, or None where no round was finished."""
        values = self.values(group, case, metric)
        return statistics.median(values.values()) if values else None

    def ratio(self, group: str, case: str, other: str, metric: str) -> float | None:
        """Return the median of the rounds' ratios of one case to another."""
        return ratio(self.values(group, case, metric), self.values(group, other, metric))

    def best(
        self,
        group: str,
        metric: str,
        chosen: Callable[[str], bool],
        *,
        least: bool = False,
    ) -> str | None:
        """Return the chosen case of the group with the highest, or least, median."""
        medians = {
            case: median
            for own, case in self.cases
            if own == group
            and chosen(case)
            and (median := self.median(group, case, metric)) is not None
        }
        ranked = sorted(medians, key=medians.__getitem__, reverse=not least)
        return ranked[0] if ranked else None

    def line(self, group: str, metric: str) -> list[tuple[float, float]]:
        """Return the medians of a group over ``x``."""
        points = {}
        for each in self.results:
            median = self.median(each.group, each.case, metric)
            if each.group == group and each.x is not None and median is not None:
                points[each.x] = median
        return sorted(points.items())

    def growth(self, group: str, metric: str) -> float | None:
        """Return the exponent by which the metric grows along a group's line."""
        points = self.line(group, metric)
        return growth(*zip(*points, strict=True)) if len(points) > 1 else None

    def unfinished(self, group: str, case: str) -> int:
        """Return how many rounds were not finished."""
        return sum(not each.finished for each in self._of(group, case))

    def _of(self, group: str, case: str) -> Iterable[Result]:
        return (each for each in self.results if (each.group, each.case) == (group, case))


def markdown(table: Table, metrics: Sequence[Metric], base: str = "") -> str:
    """Return the table as Markdown; a round that was not finished is told in its row."""
    heads = ["case"]
    for metric in metrics:
        heads.append(metric.title)
        if metric.ratio and base:
            heads.append(f"times {base}")
    lines = [_row(heads), _row(["---", *("--:" for _ in heads[1:])])]
    group = None
    for own, case in table.cases:
        if own != group and own:
            lines.append(_row([f"**{own}**", *("" for _ in heads[1:])]))
        group = own
        cells = [case]
        for metric in metrics:
            cells.append(_shown(table.median(own, case, metric.name), metric.format))
            if metric.ratio and base:
                cells.append(_shown(table.ratio(own, case, base, metric.name), ".2f"))
        if unfinished := table.unfinished(own, case):
            rounds = sum(1 for each in table.results if (each.group, each.case) == (own, case))
            cells[0] += f" (did not finish {unfinished} of {rounds})"
        lines.append(_row(cells))
    return "\n".join(lines)


def told(bars: Sequence[Bar]) -> str:
    """Return what was wanted, and whether it was reached, as Markdown."""
    lines = []
    for bar in bars:
        word = {True: "reached", False: "not reached", None: "unknown"}[bar.reached]
        sign = "at least" if bar.at_least else "at most"
        lines.append(f"- {bar.text}: {_shown(bar.value, '.2f')}, {sign} {bar.bound:g}: **{word}**")
    return "\n".join(lines)


def _shown(value: float | None, form: str) -> str:
    return _UNKNOWN if value is None else format(value, form)


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
