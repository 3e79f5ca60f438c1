"""The event and command classes that importing an app defined."""

from __future__ import annotations

from typing import TYPE_CHECKING

from worker.message import Command, Event, schema_of

if TYPE_CHECKING:
    from collections.abc import Iterator

EventClass = type[Event] | type[Command]


def event_classes() -> dict[str, EventClass]:
    """Return every event and command class of this process by its name on the wire.

    Of two classes with one name, which two versions of a shared library may bring, the last wins.
    """
    classes: dict[str, EventClass] = {}
    for base in (Event, Command):
        for kind in _subclasses(base):
            schema = schema_of(kind)
            if schema is not None:
                classes[schema.name] = kind
    return classes


def recipients() -> dict[str, list[str]]:
    """Return the services that commands are sent to, each with the names of its commands."""
    found: dict[str, list[str]] = {}
    for name, kind in event_classes().items():
        schema = schema_of(kind)
        if schema is not None and schema.to is not None:
            found.setdefault(schema.to, []).append(name)
    return found


def _subclasses(kind: EventClass) -> Iterator[EventClass]:
    children: list[EventClass] = kind.__subclasses__()  # type: ignore[assignment] # of either kind
    for child in children:
        yield child
        yield from _subclasses(child)
