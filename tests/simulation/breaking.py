"""A table of what can be broken in the product, for a while, to see that it is noticed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

from simulation.ledger import Finding
from simulation.schedule import Result

Broken = Callable[[], AbstractContextManager[object]]


class Mutation(NamedTuple):
    """What is broken, and the kind of schedule that it has to be seen in."""

    breaks: Broken
    course: str
    #: A seed that noticed it once, to begin with. The others are tried after it.
    first: int
    #: The mechanism of the product that is turned off by it.
    mechanism: str
    #: The promises that it breaks, each as the findings of them begin. Only these count: a schedule
    #: that is red for another reason shows that something is wrong, and not that this is seen.
    sees: tuple[str, ...]

    def noticed(self, result: Result) -> Finding | None:
        """Return the first finding that shows it."""
        return next((each for each in result.findings if each.text.startswith(self.sees)), None)


#: By what is broken, in words.
MUTATIONS: dict[str, Mutation] = {}


def mutation(
    course: str, first: int = 0, *, off: str, sees: str | tuple[str, ...]
) -> Callable[[Callable[[], Iterator[None]]], None]:
    """Put a function into the table that breaks something until it is gone on with."""

    def note(function: Callable[[], Iterator[None]]) -> None:
        name = function.__name__.replace("_", " ")
        told = (sees,) if isinstance(sees, str) else sees
        MUTATIONS[name] = Mutation(contextmanager(function), course, first, off, told)

    return note
