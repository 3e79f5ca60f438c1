"""What a scenario is made of: cases, how one is measured, and what the numbers are held against."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from speed.contenders import Contender
from speed.load import Load
from speed.site import Servers

if TYPE_CHECKING:
    from speed.table import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much is done; the command line can say otherwise."""

    events: int = 20_000
    seconds: float = 10.0
    #: The most that a scenario goes up to where it goes up: of remembered ids, say.
    most: int = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A row of the table: it runs once in each round."""

    name: str
    contender: Contender
    load: Load
    #: Rows of one group are compared with each other.
    group: str = ""
    #: Where it is on the axis of the plot, and what ``measure`` varies.
    x: float | None = None


@dataclass(frozen=True, slots=True)
class Metric:
    """A column. ``ratio``: also as how many times that of the group's base."""

    name: str
    title: str
    format: str = ",.0f"
    ratio: bool = False


@dataclass(frozen=True, slots=True)
class Bar:
    """What the project wants to reach; ``value`` is None where it cannot be said."""

    text: str
    value: float | None
    bound: float
    #: Otherwise at most.
    at_least: bool = True

    @property
    def reached(self) -> bool | None:
        """Whether it is."""
        if self.value is None:
            return None
        return self.value >= self.bound if self.at_least else self.value <= self.bound


@dataclass(frozen=True, slots=True)
class Plot:
    """A picture of a metric: bars by case, or lines over ``x``, one for each group."""

    metric: str
    title: str
    axis: str
    #: What lies along the horizontal axis; empty for bars.
    over: str = ""


def _none(_: Table) -> Sequence[Bar]:
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One question."""

    name: str
    title: str
    cases: Callable[[Scale], Iterable[Case]]
    measure: Callable[[Servers, Case], Mapping[str, float]]
    metrics: Sequence[Metric]
    #: The case of each group that the others are compared with.
    base: str = ""
    bars: Callable[[Table], Sequence[Bar]] = _none
    plots: Sequence[Plot] = ()
    scale: Scale = field(default_factory=Scale)
