"""Whether AMQP can carry what is kept of an event, and what is left out so that it can. Pure.

A content header must fit into one frame (AMQP 0-9-1, section 4.2.6). An event that was published
with headers that nearly fill one has no room for those that a replay adds. These decide who handles
it, and by which memory; so it is the largest of the publisher's own that is left out, and the
message says which.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import amqp

from worker.again import AGAIN, HANDLERS, LEFT_OUT, REPLAY
from worker.headers import check_headers
from worker.message import KEY_HEADER, ROUTING_KEY_HEADER
from worker.transport.departure import MOST_PROPERTIES, plain_properties
from worker.transport.embedded.encoding import encode_properties

if TYPE_CHECKING:
    from collections.abc import Mapping

    from worker.message import Outgoing

#: Characters of kept headers which surely fit, with all that is added: none of them comes to more
#: than four bytes.
SURELY_FIT = 24 * 1024
_ADDED = frozenset((KEY_HEADER, ROUTING_KEY_HEADER, REPLAY, HANDLERS, AGAIN))
_SHOWN = 40
#: Characters that say which headers were left out.
_MOST_TOLD = 1024


def check(properties: Mapping[str, Any], headers: Mapping[str, Any]) -> None:
    """Raise ValueError for what a broker would not take, with the part that is wrong."""
    encoded = plain_properties(properties, headers)
    size = _checked(properties, headers) if encoded is None else len(encoded)
    if size > MOST_PROPERTIES:
        raise ValueError(
            f"its headers and properties have {size} bytes; a broker takes"
            f" {MOST_PROPERTIES} at most"
        )


def make_fit(message: Outgoing) -> None:
    """Leave out of a message of a replay what keeps it from fitting into a frame.

    What cannot be encoded stays as it is: whoever sends it tells what is wrong.
    """
    headers = message.headers
    if AGAIN not in headers and not _fits(message):
        headers.pop(REPLAY, None)  # which only tells handlers where it comes from
    left_out: list[str] = []
    own = sorted((name for name in headers if name not in _ADDED), key=lambda n: _size(headers, n))
    while own and not _fits(message):
        largest = own.pop()
        del headers[largest]
        left_out.append(largest)
        headers[LEFT_OUT] = ", ".join(left_out)[:_MOST_TOLD]


def _checked(properties: Mapping[str, Any], headers: Mapping[str, Any]) -> int:
    """Return what is not plain comes to in bytes. Raises ValueError with the part that is wrong."""
    try:
        check_headers(headers)
    except TypeError as error:
        raise ValueError(str(error)) from None
    try:
        return _encoded(properties, headers)
    except Exception as error:  # noqa: BLE001 - py-amqp raises many kinds
        for name, value in properties.items():
            _check_part(f"its property {name!r}", {name: value}, {})
        for name, value in headers.items():
            shown = repr(name[:_SHOWN]) + ("…" if len(name) > _SHOWN else "")
            _check_part(f"its header {shown}", {}, {name: value})
        raise ValueError(str(error)) from None


def _check_part(what: str, properties: Mapping[str, Any], headers: Mapping[str, Any]) -> None:
    try:
        _encoded(properties, headers)
    except Exception as error:  # noqa: BLE001 - py-amqp raises many kinds
        raise ValueError(f"{what} cannot be sent: {error}") from None


def _encoded(properties: Mapping[str, Any], headers: Mapping[str, Any]) -> int:
    # Also as an embedded broker has it, which says best what is wrong.
    encode_properties({**properties, "application_headers": headers})
    return len(_serialized(properties, headers))


def _serialized(properties: Mapping[str, Any], headers: Mapping[str, Any]) -> bytes:
    message = amqp.Message(b"", application_headers=headers, **properties)
    encoded: bytes = message._serialize_properties()  # noqa: SLF001 - what publishing calls
    return encoded


def _fits(message: Outgoing) -> bool:
    return _bytes(message.properties, message.headers) <= MOST_PROPERTIES


def _size(headers: Mapping[str, Any], name: str) -> int:
    return _bytes({}, {name: headers[name]})


def _bytes(properties: Mapping[str, Any], headers: Mapping[str, Any]) -> int:
    """Return what they come to; 0 where they cannot be encoded."""
    try:
        return len(plain_properties(properties, headers) or _serialized(properties, headers))
    except Exception:  # noqa: BLE001 - py-amqp raises many kinds
        return 0
