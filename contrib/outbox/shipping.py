"""From rows to confirmed messages: what may be sent, in which order, and what came of it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import TYPE_CHECKING

from worker import PublishError, QworkerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from contrib.outbox.rows import Entry
    from worker import App


@dataclass(slots=True)
class Shipment:
    """What came of sending rows."""

    #: The sequence numbers of what is confirmed.
    sent: list[int] = field(default_factory=list)
    #: The rows that were refused, with the reason; their lanes stopped there.
    refused: list[tuple[Entry, str]] = field(default_factory=list)
    #: What ended it early: of what is not in the lists nothing is known.
    trouble: QworkerError | None = None
    #: Ended early because the sender might not go on; what it left was not sent.
    is_cut: bool = False


def released(entries: Iterable[Entry], horizon: int | None, stopped: set[str]) -> list[Entry]:
    """Return the rows that may be sent, in their order.

    Not those of a lane in ``stopped``; a row beyond the horizon puts its lane there.
    """
    ready = []
    for entry in entries:
        if horizon is not None and (entry.transaction or 0) >= horizon:
            stopped.add(entry.lane)
        if entry.lane not in stopped:
            ready.append(entry)
    return ready


def waves(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Yield the first row of each lane, then the second of each, and so on."""
    lanes: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        lanes[entry.lane].append(entry)
    for wave in zip_longest(*lanes.values()):
        yield [entry for entry in wave if entry is not None]


def ship(app: App, entries: Iterable[Entry], may_go_on: Callable[[], bool]) -> Shipment:
    """Send rows, a wave at a time, each confirmed before the next. Never raises a QworkerError.

    Ends early where ``may_go_on`` says no.
    """
    shipment = Shipment()
    stopped: set[str] = set()
    for wave in waves(entries):
        ready = [entry for entry in wave if entry.lane not in stopped]
        if not may_go_on():
            shipment.is_cut = True
            break
        try:
            refused = _publish(app, ready)
        except QworkerError as error:
            shipment.trouble = error
            break
        for entry in ready:
            reason = refused.get(entry.outgoing.message_id)
            if reason is None:
                shipment.sent.append(entry.sequence)
            else:
                stopped.add(entry.lane)
                shipment.refused.append((entry, reason))
    return shipment


def _publish(app: App, entries: Sequence[Entry]) -> dict[str, str]:
    """Send rows and wait for their confirms; return why any was refused, by its id."""
    errors: Sequence[BaseException] = ()
    try:
        with app.publisher() as out:
            for entry in entries:
                out.send(entry.outgoing)
    except PublishError as error:
        errors = [error]
    except ExceptionGroup as group:
        if group.split(PublishError)[1] is not None:
            raise
        errors = group.exceptions
    refused: dict[str, str] = {}
    for refusal in errors:
        ids: tuple[str, ...] = getattr(refusal, "message_ids", ())
        # One that does not say of which message it is true may be true of any.
        for message_id in ids or [entry.outgoing.message_id for entry in entries]:
            refused.setdefault(message_id, str(refusal))
    return refused
