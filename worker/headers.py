"""Headers that brokers cannot read: a broker ends the connection that sends one, each time anew.

So they are refused where a message is made, and once more where one is written that was made
elsewhere. RabbitMQ 3.10 was seen to do so; AMQP 0-9-1 takes any double.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

#: Those by which a broker sends copies (RabbitMQ, "Sender-selected Distribution").
COPIES = ("CC", "BCC")
_MOST_SHOWN = 80


def check_headers(headers: Mapping[str, Any]) -> None:
    """Raise TypeError or ValueError, with what is wrong, where a broker cannot read ``headers``."""
    for copies in COPIES:
        given = headers.get(copies)
        if given is not None and not _are_texts(given):
            raise TypeError(
                f"the header {copies} is {_shown(given)}; brokers take a list of routing keys"
                " there, and end the connection that sends anything else"
            )
    for name, value in headers.items():
        if not _is_readable(value):
            raise ValueError(
                f"the header {_shown(name)} is {_shown(value)}; brokers read no number that is not"
                " finite, and end the connection that sends one"
            )


def _is_readable(value: object) -> bool:
    if isinstance(value, float):
        return isfinite(value)
    if isinstance(value, Mapping):
        return all(map(_is_readable, value.values()))
    return not isinstance(value, list | tuple) or all(map(_is_readable, value))


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else text[: _MOST_SHOWN - 3] + "..."
