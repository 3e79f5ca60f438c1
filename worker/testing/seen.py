"""What a test sees of its app: executions, and messages as they lie in queues."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import orjson

from worker.deadletters import Letter
from worker.message import Message

if TYPE_CHECKING:
    from collections.abc import Mapping

    from worker.codec import Codec
    from worker.transport.arrival import Arrival


class Execution(NamedTuple):
    """One call of a handler. Equals the plain tuple of its fields."""

    handler: str
    event_id: str
    #: 1 for the first.
    attempt: int


@dataclass(frozen=True, slots=True)
class SeenMessage:
    """A message that handlers published. What cannot be read of it is empty."""

    message_id: str
    name: str
    #: What orders it; None: nothing does.
    key: str | None
    #: The payload, parsed; None where it is no JSON.
    payload: Any
    headers: Mapping[str, Any]
    #: AMQP basic properties by py-amqp's names.
    properties: Mapping[str, Any]
    #: The body as it is on the wire.
    body: bytes = field(repr=False)
    #: The message as a handler would receive it; None where it could not.
    message: Message | None = field(repr=False)

    @classmethod
    def of(cls, arrival: Arrival, codec: Codec) -> Self:
        """Read a delivery by the wire format of its service."""
        letter = Letter.of(arrival, codec)
        decoded = codec.decode(letter.body, arrival.properties)
        message = decoded if isinstance(decoded, Message) else None
        return cls(
            message_id=letter.id,
            name=letter.name,
            key=letter.key,
            payload=_parsed(letter.body if message is None else message.body),
            headers=letter.headers,
            properties=letter.properties,
            body=letter.body,
            message=message,
            **cls._more(letter),
        )

    @classmethod
    def _more(cls, _letter: Letter) -> dict[str, Any]:
        return {}


@dataclass(frozen=True, slots=True)
class DeadLetter(SeenMessage):
    """A message that was set aside, and why."""

    reason: str
    #: The handler that could not do it; empty where it reached none.
    handler: str
    #: How often that handler was tried.
    attempts: int
    #: The traceback of the last attempt, where there was one.
    detail: str = field(repr=False)

    @classmethod
    def _more(cls, letter: Letter) -> dict[str, Any]:
        return {
            "reason": letter.reason,
            "handler": letter.handler,
            "attempts": letter.attempts,
            "detail": letter.detail,
        }


def _parsed(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
