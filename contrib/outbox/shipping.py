"""From rows to confirmed messages: what may be sent, in which order, and what came of it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import TYPE_CHECKING

from worker import ConfirmTimeout, PublishError, QworkerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from contrib.outbox.rows import Entry
    from worker import App


@dataclass(frozen=True, slots=True)
class Refusal:
    """A row that is not confirmed, and why."""

    entry: Entry
    reason: str
    #: It is known to be this one; otherwise one that was sent with it may be to blame.
    is_certain: bool


@dataclass(slots=True)
class Shipment:
    """What came of sending rows."""

    #: The sequence numbers of what is confirmed.
    sent: list[int] = field(default_factory=list)
    #: The rows that were refused; their lanes stopped there.
    refused: list[Refusal] = field(default_factory=list)
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
        if not ready:
            continue
        try:
            refused = _publish(app, ready)
        except QworkerError as error:
            shipment.trouble = error
            break
        for entry in ready:
            refusal = refused.get(entry.sequence)
            if refusal is None:
                shipment.sent.append(entry.sequence)
            else:
                stopped.add(entry.lane)
                shipment.refused.append(refusal)
    return shipment


def _publish(app: App, entries: Sequence[Entry]) -> dict[int, Refusal]:
    """Send rows and wait for their confirms; return what was refused, by its sequence number."""
    refused: dict[int, Refusal] = {}
    errors: Sequence[BaseException] = ()
    try:
        with app.publisher() as out:
            for entry in entries:
                if entry.outgoing is None:
                    refused[entry.sequence] = Refusal(entry, entry.damage, is_certain=True)
                else:
                    out.send(entry.outgoing, kept_by_sender=True)
    except PublishError as error:
        errors = [error]
    except ExceptionGroup as group:
        if group.split(PublishError)[1] is not None:
            raise
        errors = group.exceptions
    for each in errors:
        ids = {*getattr(each, "message_ids", ())}
        # One that does not say of which message it is true may be true of any.
        is_certain = bool(ids) and not isinstance(each, ConfirmTimeout)
        for entry in entries:
            if entry.outgoing is not None and (not ids or entry.outgoing.message_id in ids):
                refusal = Refusal(entry, str(each), is_certain=is_certain)
                refused.setdefault(entry.sequence, refusal)
    return refused
