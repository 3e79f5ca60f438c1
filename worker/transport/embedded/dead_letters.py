"""What becomes of messages that expire, are rejected, or fall out of a full queue.

They go to the queue's dead-letter exchange, if it has one, in the transaction that takes them out
of the queue, so none is ever in neither place. The header ``x-death`` tells their story as
RabbitMQ does ("Dead Letter Exchanges"). A message that would come to the same queue a second time
without ever having been rejected in between is dropped, as there: it would go round for ever.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from amqp import exceptions

from worker.transport.embedded import store
from worker.transport.embedded.encoding import decode_properties, encode_properties

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Mapping, Sequence

    from worker.transport.embedded.catalog import Catalog, Queue
    from worker.transport.embedded.store import Letter, Removed

#: AMQP's delivery mode of messages that outlive the broker.
PERSISTENT = 2
REJECTED, EXPIRED, FULL = "rejected", "expired", "maxlen"

_LARGEST_TTL_DIGITS = 15

logger = logging.getLogger(__name__)


class DeadLetters:
    """Moves messages to where they go when nobody processed them. Works inside a transaction."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def put(
        self, db: sqlite3.Connection, letters: Mapping[Queue, Sequence[Letter]], *, refuse: bool
    ) -> None:
        """Store ``letters`` in their queues, and bury what falls out of full ones.

        With ``refuse``, raises amqp MessageNacked where a full queue refuses; without, as for
        dead letters, which nobody waits for, the queue's own rule is bent and they are kept.
        """
        waiting = deque(letters.items())
        while waiting:
            queue, batch = waiting.popleft()
            ready = store.put(db, queue, batch)
            if queue.max_length is None or ready <= queue.max_length:
                continue
            if not queue.rejects_when_full:
                excess = store.remove_head(db, queue.id, ready - queue.max_length)
                waiting.extend(self._address(db, queue, excess, FULL).items())
            elif refuse:
                raise exceptions.MessageNacked(f"queue {queue.name!r} is full")

    def bury(
        self, db: sqlite3.Connection, queue: Queue, messages: Iterable[Removed], reason: str
    ) -> None:
        """Dead-letter what was taken out of ``queue``; it is gone where that names no exchange."""
        self.put(db, self._address(db, queue, messages, reason), refuse=False)

    def expire(self, db: sqlite3.Connection, limit: int) -> None:
        """Bury the messages that have expired, at most ``limit``."""
        for id_, messages in store.remove_expired(db, limit).items():
            queue = self._catalog.queue_by_id(id_, db)
            if queue is not None:
                self.bury(db, queue, messages, EXPIRED)

    def _address(
        self, db: sqlite3.Connection, queue: Queue, messages: Iterable[Removed], reason: str
    ) -> dict[Queue, list[Letter]]:
        letters: dict[Queue, list[Letter]] = {}
        exchange = queue.dead_letter_exchange
        if exchange is None:
            return letters
        now = time.time()
        for message in messages:
            old = decode_properties(message.properties)
            properties = bury_properties(
                old, queue.name, reason, message.exchange, message.routing_key, now
            )
            key = queue.dead_letter_routing_key
            key = message.routing_key if key is None else key
            try:
                targets = self._catalog.route(exchange, key, properties, db)
            except exceptions.NotFound:
                targets = ()
            if reason != REJECTED:
                targets = tuple(t for t in targets if not goes_round(old, queue.name, t.name))
            if not targets:
                logger.warning(
                    "a message that %s in queue %r is lost: exchange %r takes it nowhere (key %r)",
                    reason, queue.name, exchange, key,
                )  # fmt: skip
            letter = make_letter(properties, message.body, exchange, key)
            for target in targets:
                addressed = address(letter, target, properties, int(now * 1000))
                letters.setdefault(target, []).append(addressed)
        return letters


def make_letter(
    properties: Mapping[str, Any], body: bytes, exchange: str, routing_key: str
) -> Letter:
    """Return a message as most queues store it. Raises Unencodable where AMQP cannot carry it."""
    persistent = properties.get("delivery_mode") == PERSISTENT
    encoded = encode_properties(properties)
    return store.Letter(0, None, persistent, exchange, routing_key, encoded, body)


def address(letter: Letter, queue: Queue, properties: Mapping[str, Any], now: int) -> Letter:
    """Return ``letter`` with its rank and expiry in ``queue``. ``now`` is in ms since 1970.

    Raises amqp PreconditionFailed where its property ``expiration`` is not a number of ms.
    """
    expiration = properties.get("expiration")
    if expiration is None and not queue.ranks_or_expires:
        return letter
    priority = properties.get("priority") or 0
    ttl = queue.ttl
    if expiration is not None:
        own = _milliseconds(expiration)
        ttl = own if ttl is None else min(own, ttl)
    return letter._replace(
        rank=-min(priority, queue.max_priority), expires=None if ttl is None else now + ttl
    )


def bury_properties(  # noqa: PLR0913, PLR0917 - the parts of a death
    properties: Mapping[str, Any],
    queue: str,
    reason: str,
    exchange: str,
    routing_key: str,
    now: float,
) -> dict[str, Any]:
    """Return the properties of a message after its death in ``queue``. Pure.

    The newest death stands first in ``x-death``; dying again in the same queue for the same
    reason counts up. The expiration goes, so that the message does not expire again.
    """
    buried = dict(properties)
    expiration = buried.pop("expiration", None)
    headers = dict(buried.get("application_headers") or {})
    deaths = [dict(death) for death in _deaths(properties)]
    for index, death in enumerate(deaths):
        if death.get("queue") == queue and death.get("reason") == reason:
            latest = deaths.pop(index)
            count = latest.get("count")
            latest["count"] = count + 1 if isinstance(count, int) else 1
            break
    else:
        latest = {
            "count": 1,
            "exchange": exchange,
            "queue": queue,
            "reason": reason,
            "routing-keys": [routing_key],
            # As py-amqp reads a timestamp: whole seconds of UTC, without a time zone.
            "time": datetime.fromtimestamp(int(now), UTC).replace(tzinfo=None),
        }
        if expiration is not None:
            latest["original-expiration"] = expiration
    headers["x-death"] = [latest, *deaths]
    headers.setdefault("x-first-death-exchange", exchange)
    headers.setdefault("x-first-death-queue", queue)
    headers.setdefault("x-first-death-reason", reason)
    buried["application_headers"] = headers
    return buried


def goes_round(properties: Mapping[str, Any], queue: str, target: str) -> bool:
    """Tell whether a message that dies in ``queue``, unrejected, has been in ``target`` before.

    ``properties`` are those before this death. Only the way since ``target`` counts, and a
    rejection on it breaks the circle: then somebody is looking at the message.
    """
    if queue == target:
        return True
    for death in _deaths(properties):
        if death.get("reason") == REJECTED:
            return False
        if death.get("queue") == target:
            return True
    return False


def _deaths(properties: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the deaths so far. A publisher may have put anything into that header."""
    deaths = (properties.get("application_headers") or {}).get("x-death")
    return [d for d in deaths if isinstance(d, dict)] if isinstance(deaths, list) else []


def _milliseconds(expiration: object) -> int:
    if (
        not isinstance(expiration, str)
        or not (expiration.isascii() and expiration.isdigit())
        or len(expiration) > _LARGEST_TTL_DIGITS
    ):
        raise exceptions.PreconditionFailed(
            f"PRECONDITION_FAILED - invalid expiration {expiration!r}: give ms as text", (60, 40)
        )
    return int(expiration)
