"""Messages that are set aside: what they look like in the dead-letter and parked queues.

The body and the publisher's own headers and properties stay byte for byte; the reason, and where
the message came from, are added as headers ``qw-dead-…`` so that people can read, mend and replay
it. What would harm the message in its new place is renamed (``CC`` and ``BCC`` would copy it to
other queues) or dropped (``expiration``, ``user_id``).
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from worker.message import UNDECODABLE, Outgoing
from worker.transport.properties import Malformed, amend, amend_decoded, without

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "qw-dead-"
REASON = "qw-dead-reason"
HANDLER = "qw-dead-handler"
QUEUE = "qw-dead-queue"
TIME = "qw-dead-time"
ATTEMPTS = "qw-dead-attempts"
DETAIL = "qw-dead-detail"
_RENAMED = {"CC": "qw-dead-CC", "BCC": "qw-dead-BCC"}
_RENAMED_RAW = {old.encode(): new.encode() for old, new in _RENAMED.items()}
_DROPPED = ("application_headers", "expiration", "user_id")


def set_aside(
    arrival: Any,  # noqa: ANN401 - py-amqp's Message
    message_id: str,
    to_queue: str,
    facts: Mapping[str, str | int],
) -> Outgoing:
    """Return ``arrival`` (as py-amqp delivered it) to be put into ``to_queue`` with ``facts``."""
    return redirect(arrival, message_id, exchange="", routing_key=to_queue, facts=facts)


def redirect(  # noqa: PLR0913 - where to, and what changes on the way
    arrival: Any,  # noqa: ANN401
    message_id: str,
    *,
    exchange: str,
    routing_key: str,
    facts: Mapping[str, str | int],
    drop_prefix: str | None = None,
) -> Outgoing:
    """Return ``arrival`` to be sent elsewhere, otherwise as it came."""
    body = bytes(arrival.body)
    raw = getattr(arrival, "frame_args", None)
    if isinstance(raw, bytes) and raw:
        try:
            prefix = None if drop_prefix is None else drop_prefix.encode()
            changed = amend(raw, add=facts, rename=_RENAMED_RAW, drop_prefix=prefix)
            return Outgoing(exchange, routing_key, body, message_id, {}, {}, raw=changed)
        except Malformed as error:
            facts = {**facts, "qw-dead-properties": raw.hex(), "qw-dead-malformed": str(error)}
    headers = arrival.properties.get("application_headers") or {}
    changed_headers = amend_decoded(headers, add=facts, rename=_RENAMED, drop_prefix=drop_prefix)
    properties: dict[str, Any] = without(arrival.properties, (*_DROPPED, UNDECODABLE))
    return Outgoing(exchange, routing_key, body, message_id, properties, changed_headers)


def dead_letter_facts(
    reason: str, *, queue: str, handler: str = "", attempts: int = 0, detail: str = ""
) -> dict[str, str | int]:
    """Return the headers that tell people why a message was set aside."""
    facts: dict[str, str | int] = {
        REASON: reason,
        QUEUE: queue,
        TIME: datetime.now(UTC).isoformat(timespec="milliseconds"),
    }
    if handler:
        facts[HANDLER] = handler
        facts[ATTEMPTS] = attempts
    if detail:
        facts[DETAIL] = detail
    return facts
