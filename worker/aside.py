"""Messages that are set aside: what they look like in the dead-letter and parked queues.

The body and the publisher's own headers and properties stay byte for byte; the reason, and where
the message came from, are added as headers ``qw-dead-…`` so that people can read, mend and replay
it. What would harm the message in its new place is renamed (``CC`` and ``BCC`` would copy it to
other queues) or dropped (``expiration``, ``user_id``).

A content header must fit into one frame (AMQP 0-9-1, section 4.2.6), or the broker ends the
connection. So a publisher's headers that leave no room are left out, and the message says so.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import amqp

from worker.message import ROUTING_KEY_HEADER, UNDECODABLE, Outgoing, disarmed
from worker.transport.departure import MOST_PROPERTIES
from worker.transport.properties import HeaderValue, Malformed, amend, amend_decoded, without

if TYPE_CHECKING:
    from collections.abc import Mapping

    from worker.transport.arrival import Arrival

#: Header of a parked message that returns to this handler alone: it is a dead letter of it.
ONLY = "qw-parked-only"
PREFIX = "qw-dead-"
REASON = "qw-dead-reason"
HANDLER = "qw-dead-handler"
QUEUE = "qw-dead-queue"
TIME = "qw-dead-time"
ATTEMPTS = "qw-dead-attempts"
RECORD = "qw-dead-record"
#: The key, where the message has it in another place than publishers of the runtime put it.
KEY = "qw-dead-key"
DETAIL = "qw-dead-detail"
MALFORMED = "qw-dead-malformed"
PROPERTIES = "qw-dead-properties"
LEFT_OUT = "qw-dead-left-out"
_MOST_SHOWN = 16 * 1024
_RENAMED = {
    "CC": "qw-dead-CC",
    "BCC": "qw-dead-BCC",
    # A quorum queue's own count, which is no fact of the publisher's in any other place.
    "x-delivery-count": "qw-dead-delivery-count",
}
_RENAMED_RAW = {old.encode(): new.encode() for old, new in _RENAMED.items()}
_DROPPED = ("application_headers", "expiration", "user_id")


def set_aside(
    arrival: Arrival,
    message_id: str,
    to_queue: str,
    facts: Mapping[str, str | int],
) -> Outgoing:
    """Return ``arrival`` to be put into ``to_queue`` with ``facts``."""
    return redirect(arrival, message_id, exchange="", routing_key=to_queue, facts=facts)


def redirect(  # noqa: PLR0913 - where to, and what changes on the way
    arrival: Arrival,
    message_id: str,
    *,
    exchange: str,
    routing_key: str,
    facts: Mapping[str, HeaderValue],
    drop_prefix: str | None = None,
) -> Outgoing:
    """Return ``arrival`` to be sent elsewhere, otherwise as it came.

    It is an error where no queue takes it: it would be lost. Somebody's event that looks like a
    message of the runtime's becomes none because it comes by the default exchange next.
    """
    facts = {**_disarmed(arrival), **facts}
    send = partial(Outgoing, exchange, routing_key, bytes(arrival.body), message_id, mandatory=True)
    facts = {name: _legible(value) for name, value in facts.items()}
    brief = {name: value for name, value in facts.items() if name != DETAIL}
    raw = arrival.raw
    if raw:
        prefix = None if drop_prefix is None else drop_prefix.encode()
        try:
            for added in (facts, brief):
                changed = amend(raw, add=added, rename=_RENAMED_RAW, drop_prefix=prefix)
                if len(changed) <= MOST_PROPERTIES:
                    return send({}, {}, raw=changed)
        except Malformed as error:
            brief[MALFORMED] = str(error)
            brief[PROPERTIES] = raw[:_MOST_SHOWN].hex()
    headers = arrival.properties.get("application_headers")
    headers = headers if isinstance(headers, dict) else {}
    properties = without(arrival.properties, (*_DROPPED, UNDECODABLE))
    left_out = {**brief, LEFT_OUT: "the publisher's headers: too many, or not to be encoded"}
    for kept, changed_headers in (
        (properties, _changed(headers, {**facts, **brief}, drop_prefix)),
        (properties, _changed(headers, brief, drop_prefix)),
        (properties, left_out),
    ):
        if _can_be_sent(kept, changed_headers):
            return send(kept, changed_headers)
    left_out[LEFT_OUT] = "the publisher's headers and properties: not to be encoded"
    return send({}, left_out)


def _disarmed(arrival: Arrival) -> dict[str, str]:
    if first_exchange(arrival) == "":  # the runtime sent it, or moved it before
        return {}
    headers = arrival.properties.get("application_headers")
    return disarmed(arrival.properties.get("type"), headers if isinstance(headers, dict) else {})


def first_exchange(arrival: Arrival) -> str:
    """Return the exchange that a message came by: where a broker set it aside, before that."""
    headers = arrival.properties.get("application_headers")
    return arrival.exchange or str(first_death(headers).get("exchange") or "")


def first_death(headers: object) -> Mapping[str, Any]:
    """Return what a broker tells of the first time it dead-lettered a message, or nothing.

    https://www.rabbitmq.com/docs/dlx#effects
    """
    deaths = headers.get("x-death") if isinstance(headers, dict) else None
    oldest = deaths[-1] if isinstance(deaths, list) and deaths else None
    return oldest if isinstance(oldest, dict) else {}


def _changed(
    headers: Mapping[str, object], facts: Mapping[str, HeaderValue], drop_prefix: str | None
) -> dict[str, Any]:
    return amend_decoded(headers, add=facts, rename=_RENAMED, drop_prefix=drop_prefix)


def _can_be_sent(properties: Mapping[str, Any], headers: Mapping[str, Any]) -> bool:
    """Tell whether py-amqp can encode them, and a frame carry them."""
    message = amqp.Message(b"", application_headers=headers, **properties)
    try:
        encoded: bytes = message._serialize_properties()  # noqa: SLF001 - what publishing calls
    except Exception:  # noqa: BLE001 - py-amqp raises many kinds
        return False
    return len(encoded) <= MOST_PROPERTIES


def _legible(value: HeaderValue) -> HeaderValue:
    """Return text as every broker and reader takes it: without lone surrogates."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def origin(arrival: Arrival) -> dict[str, str | int]:
    """Return the header that keeps the routing key which ``arrival`` was published with."""
    return {ROUTING_KEY_HEADER: published_as(arrival)}


def published_as(arrival: Arrival) -> str:
    """Return the routing key which ``arrival`` was published with at first.

    The default exchange takes the name of a queue for the routing key. What came by it was moved,
    by the runtime, which kept the other one; on other ways the header is any publisher's word.
    """
    headers = arrival.properties.get("application_headers")
    if arrival.exchange == "" and isinstance(headers, dict):
        kept = headers.get(ROUTING_KEY_HEADER)
        if isinstance(kept, str):
            return kept
    return arrival.routing_key


def dead_letter_facts(  # noqa: PLR0913 - all that there is to tell
    reason: str,
    *,
    queue: str,
    handler: str = "",
    attempts: int = 0,
    record: bytes = b"",
    key: str = "",
    detail: str = "",
) -> dict[str, str | int]:
    """Return the headers that tell people why a message was set aside.

    ``record`` is what the dedup store remembers of it, which a replay makes forgotten; ``key`` is
    for messages that do not show it by themselves.
    """
    facts: dict[str, str | int] = {
        REASON: reason,
        QUEUE: queue,
        TIME: datetime.now(UTC).isoformat(timespec="milliseconds"),
    }
    if handler:
        facts[HANDLER] = handler
        facts[ATTEMPTS] = attempts
    if record:
        facts[RECORD] = record.hex()
    if key:
        facts[KEY] = key
    if detail:
        facts[DETAIL] = detail
    return facts
