"""Opening the queues of a service's letters, and saying which letters are meant."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, TypeVar

import click

from worker.cli.loading import no_handler
from worker.cli.output import count, note
from worker.deadletters import Box, Letter
from worker.topology import dead_letter_queue, parked_queue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from worker.cli.letters import Filter
    from worker.cli.loading import Target

F = TypeVar("F", bound="Callable[..., Any]")

#: The settings that a command about letters needs.
SETTINGS = (
    "app",
    "broker",
    "dedup",
    "leases",
    "connect_timeout",
    "confirm_timeout",
    "dedup_timeout",
)

_FILTERS = (
    click.option("--handler", metavar="NAME", help="Only what this handler could not do."),
    click.option("--name", metavar="NAME", help="Only events of this name, or pattern."),
    click.option("--key", metavar="TEXT", help="Only what has this key."),
    click.option("--reason", metavar="TEXT", help="Only where the reason contains this."),
)


def filter_options(function: F) -> F:
    """Give a command the options of a :class:`~worker.cli.letters.Filter`."""
    for option in reversed(_FILTERS):
        function = option(function)
    return function


def open_box(place: Target, *, parked: bool = False) -> Box:
    """Open the dead-letter queue, or the parked one, of a service. Raises as :class:`Box` does."""
    queue = (parked_queue if parked else dead_letter_queue)(place.service)
    return Box(queue, place.codec, place.settings)


def tell_handler(place: Target, wanted: Filter) -> None:
    """Say on standard error where the app has no handler of the name that is meant.

    No more than that: letters of one that it had before are still there to be meant.
    """
    if place.app is not None and wanted.handler is not None:
        mistake = no_handler(place.app, wanted.handler)
        if mistake:
            note(f"qworker: {mistake}")


class Search:
    """Reads the letters of a box that a user means, and knows what to say where there are none."""

    def __init__(self, box: Box, wanted: Filter) -> None:
        self._box = box
        self._wanted = wanted
        self._seen: dict[str, set[str]] = {"handler": set(), "name": set()}
        self._missing = dict.fromkeys(wanted.ids)

    def __iter__(self) -> Iterator[Letter]:
        """Yield the letters that are meant, in order. Raises as :meth:`Box.read` does."""
        for letter in self._box.read():
            self._seen["handler"].add(letter.handler)
            self._seen["name"].add(letter.name)
            self._missing.pop(letter.id, None)
            if self._wanted.takes(letter):
                yield letter

    @property
    def incomplete(self) -> bool:
        """Whether an id that was asked for was not found."""
        return bool(self._missing)

    def tell(self, found: int) -> None:
        """Say on standard error where nothing was found, or not everything was read."""
        box = self._box
        if box.is_shared:
            note(f"somebody else is reading {box.queue}: what they have was not seen; try again")
        elif box.unread:
            note(
                f"{box.queue} holds too much: its last {count(box.unread, 'message')} were not read"
            )
        elif self._missing:
            for id_ in self._missing:
                note(f"qworker: there is no message {id_!r} in {box.queue}")
        elif not box.depth:
            note(f"{box.queue} is empty")
        elif not found:
            note(f"none of {count(box.depth, 'message')} in {box.queue} is meant{self._hint()}")

    def _hint(self) -> str:
        for what, values in self._seen.items():
            asked = getattr(self._wanted, what)
            if asked is not None and asked not in values:
                near = get_close_matches(asked, filter(None, values), n=1)
                if near:
                    return f"; did you mean --{what} {near[0]}?"
        return ""
