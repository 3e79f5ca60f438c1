"""Draws what a scenario gave, as SVG: bars by case, or lines over what was varied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from speed.scenario import Plot
from speed.table import Table

_OURS, _MARKED, _PLAIN, _LIMIT = "#1b6ca8", "#c98a2b", "#b5b5b5", "#4d4d4d"
_WIDTH, _BAR, _HEAD = 7.0, 0.24, 0.7
_LINES = (7.0, 3.2)
#: Where the greatest is so many times the least, the axis is logarithmic.
_FAR = 50

mpl.rcParams.update(
    {
        "svg.fonttype": "none",  # text stays text
        "svg.hashsalt": "speed",  # the same numbers give the same file
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
)


def draw(plot: Plot, table: Table, file: Path) -> None:
    """Draw a plot of a scenario's results."""
    file.parent.mkdir(parents=True, exist_ok=True)
    figure = _lines(table, plot) if plot.over else _bars(table, plot)
    figure.savefig(file, metadata={"Date": None}, bbox_inches="tight")


def _bars(table: Table, plot: Plot) -> Figure:
    groups: dict[str, dict[str, float]] = {}
    for group, case in table.cases:
        median = table.median(group, case, plot.metric)
        if median is not None:
            groups.setdefault(group, {})[case] = median
    heights = [_HEAD + _BAR * len(bars) for bars in groups.values()]
    figure = Figure(figsize=(_WIDTH, sum(heights)), layout="constrained")
    axes = figure.subplots(len(groups), 1, squeeze=False, height_ratios=heights)
    for axis, (group, bars) in zip(axes[:, 0], groups.items(), strict=True):
        _bars_of(axis, bars)
        axis.set_title(group or plot.title, loc="left", fontsize=9)
        axis.set_xlabel(plot.axis)
    return figure


def _bars_of(axis: Any, bars: dict[str, float]) -> None:
    drawn = axis.barh([*bars], [*bars.values()], color=[_colour(case) for case in bars])
    axis.bar_label(drawn, labels=[_short(value) for value in bars.values()], padding=3)
    axis.invert_yaxis()
    if max(bars.values()) > _FAR * min(bars.values()) > 0:
        axis.set_xscale("log")
    axis.margins(x=0.12)


def _lines(table: Table, plot: Plot) -> Figure:
    figure = Figure(figsize=_LINES, layout="constrained")
    axis = figure.subplots()
    for group in dict.fromkeys(group for group, _ in table.cases):
        points = table.line(group, plot.metric)
        sizes = [max(size, 1.0) for size, _ in points]
        axis.plot(sizes, [cost for _, cost in points], marker="o", label=group)
    axis.set_xscale("log")
    axis.set_ylim(bottom=0)
    axis.set_xlabel(plot.over)
    axis.set_ylabel(plot.axis)
    axis.set_title(plot.title, loc="left", fontsize=9)
    axis.legend(frameon=False)
    return figure


def _colour(case: str) -> str:
    if case.startswith("qworker"):
        return _OURS
    if case.startswith("kombu"):
        return _LIMIT
    return _MARKED if case.endswith("-setnx") else _PLAIN


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"  # noqa: PLR2004 - three digits
