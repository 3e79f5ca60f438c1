"""A message as a row, and what the database has to do with the rows of a service."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from worker.contrib.identity import plain

from worker import Outgoing, QworkerError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

#: The header in which every message of ours has what orders it: its key, or else its id.
_KEY_HEADER = "qw-key"


class OutboxUnavailable(QworkerError):
    """The database of the outbox does not answer, or not as it should."""

    exit_code = 4


class Deadlock(OutboxUnavailable):
    """A statement was given up for another one, and may be asked again at once."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A row: a message that the broker has not confirmed yet, as far as the database knows."""

    sequence: int
    #: The number of the transaction that wrote it, where the database has a horizon.
    transaction: int | None
    #: What orders it, and its id, as ``plain`` text.
    lane: str
    message_id: str
    #: None where the row is not what was written; ``damage`` says why.
    outgoing: Outgoing | None
    damage: str = ""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Which rows are meant."""

    #: Sequence numbers: above the first, up to the second; None: up to the newest.
    after: int = 0
    until: int | None = None
    #: Of these lanes, None: of all, and not of those.
    lanes: Collection[str] | None = None
    without: Collection[str] = ()


EVERYTHING = Bounds()


class OutboxStore(Protocol):
    """The rows of one service. Any thread may use it.

    Every method raises OutboxUnavailable where the database does not do it.
    """

    def check(self) -> None:
        """Return if rows could be read now. Raises ConfigurationError where no table is there."""
        ...

    def horizon(self) -> int | None:
        """Return the number below which every transaction that has written rows by now has ended.

        All rows of these are to be seen. Nothing is told of rows that are written later, which may
        be by a transaction that has its number already; so who reads more than once under one
        horizon asks for the ``newest`` before, and stops there.

        None where no row is hidden behind newer ones: rows become visible in the order of their
        numbers, or ``read`` waits for those that are not to be seen yet.
        """
        ...

    def newest(self) -> int:
        """Return the highest sequence number of a row that there is; 0 where there is none."""
        ...

    def read(self, limit: int, within: Bounds = EVERYTHING) -> list[Entry]:
        """Return up to ``limit`` rows of those that are meant, by their sequence numbers."""
        ...

    def remove(self, sequences: Sequence[int]) -> None:
        """Remove rows; those that are gone already are no error."""
        ...


def columns_of(service: str, outgoing: Outgoing) -> dict[str, Any]:
    """Return the columns of the row for a message of this service, but for its numbers.

    Raises TypeError for headers that JSON does not know.
    """
    try:
        headers = json.dumps(outgoing.headers)
    except TypeError as error:
        raise TypeError(
            f"{outgoing.message_id}: the outbox keeps headers as JSON: {error}"
        ) from None
    return {
        "service": plain(service),
        "lane": plain(outgoing.headers[_KEY_HEADER]),
        "message_id": plain(outgoing.message_id),
        "name": outgoing.properties["type"],
        "exchange": outgoing.exchange,
        "routing_key": outgoing.routing_key,
        "mandatory": outgoing.mandatory,
        "properties": json.dumps(outgoing.properties),
        "headers": headers,
        "body": outgoing.body,
        "at": time.time(),
    }


def entry_of(row: Mapping[str, Any]) -> Entry:
    """Return what was written as a row; or an entry that says how the row was damaged."""
    outgoing, damage = None, ""
    try:
        outgoing = _outgoing(row)
    except ValueError as error:
        damage = f"the row is damaged: {error}"
    sequence, transaction = row["sequence"], row["transaction_id"]
    return Entry(sequence, transaction, row["lane"], row["message_id"], outgoing, damage)


def _outgoing(row: Mapping[str, Any]) -> Outgoing:
    """Return the message of a row. Raises ValueError, since people and scripts can write rows."""
    properties, headers = _fields(row, "properties"), _fields(row, "headers")
    for name in ("message_id", "type"):
        if not isinstance(properties.get(name), str):
            raise ValueError(f"its properties have no {name}")
    for name in ("exchange", "routing_key"):
        if not isinstance(row[name], str):
            raise ValueError(f"its {name} is no text")
    body = row["body"]
    if not isinstance(body, bytes | bytearray | memoryview):
        raise ValueError(f"its body is no bytes, but {type(body).__name__}")
    return Outgoing(
        row["exchange"],
        row["routing_key"],
        bytes(body),
        properties["message_id"],
        properties,
        headers,
        mandatory=bool(row["mandatory"]),
    )


def _fields(row: Mapping[str, Any], name: str) -> dict[str, Any]:
    try:
        fields = json.loads(row[name])
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"its {name} are no JSON: {error}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"its {name} are no JSON object")
    return fields
