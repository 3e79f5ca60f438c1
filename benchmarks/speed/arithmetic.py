"""What is made of the numbers of many rounds. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the smallest value that ``share`` of all values do not exceed: the nearest rank.

    The values are in ascending order, and there is at least one.
    """
    rank = math.ceil(share * len(ordered))
    return ordered[max(0, rank - 1)]


def ratio(own: Mapping[int, float], other: Mapping[int, float]) -> float | None:
    """Return the median over the rounds of how often ``other`` goes into ``own``.

    Within a round both met the same machine. A round that only one of them finished says nothing;
    None where no round is left.
    """
    ratios = [own[number] / other[number] for number in own if other.get(number)]
    return statistics.median(ratios) if ratios else None


def growth(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Return the exponent by which costs grow with sizes: 1 is linear, 0 is not at all.

    The slope of the least-squares line through the logarithms; sizes of 0 count as 1.
    """
    xs = [math.log(max(size, 1.0)) for size in sizes]
    ys = [math.log(cost) for cost in costs]
    return statistics.linear_regression(xs, ys).slope
