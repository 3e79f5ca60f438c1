"""A table of what can be broken in the product, for a while, to see that it is noticed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

Broken = Callable[[], AbstractContextManager[object]]


class Mutation(NamedTuple):
    """What is broken, and the kind of schedule that it has to be seen in."""

    breaks: Broken
    course: str
    #: A seed that noticed it once, to begin with. The others are tried after it.
    first: int


#: By what is broken, in words.
MUTATIONS: dict[str, Mutation] = {}


def mutation(course: str, first: int = 0) -> Callable[[Callable[[], Iterator[None]]], None]:
    """Put a function into the table that breaks something until it is gone on with."""

    def note(function: Callable[[], Iterator[None]]) -> None:
        name = function.__name__.replace("_", " ")
        MUTATIONS[name] = Mutation(contextmanager(function), course, first)

    return note
