"""Tables of AMQP headers and properties as JSON text, and back, without loss. Pure.

JSON has no bytes, dates or decimals, which AMQP's field tables have. They are objects of one member
whose name begins with ``$``; a table of the publisher's that looks like one is wrapped too.
"""

from __future__ import annotations

import json
import math
import re
from base64 import b64decode, b64encode
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from collections.abc import Mapping

_LONG_NUMBER = re.compile(r"[0-9]{19}")
_PLAIN = frozenset((str, int, bool, type(None)))
_BYTES, _TIME, _DECIMAL, _FLOAT, _TABLE = "$bytes", "$time", "$decimal", "$float", "$table"
_EMPTY = "{}"
_encode = json.JSONEncoder(ensure_ascii=True, separators=(",", ":"), allow_nan=False).encode


def dump_table(table: Mapping[str, Any]) -> str:
    """Return ``table`` as JSON text. Raises ValueError for what no AMQP table can hold."""
    if not table:
        return _EMPTY
    if _PLAIN.issuperset(map(type, table.values())) and not _looks_wrapped(table):
        return _encode(table)
    try:
        return _encode(_wrapped(table))
    except RecursionError:
        raise ValueError("the tables in it are too deep") from None


def load_table(text: str) -> dict[str, Any]:
    """Return the table that ``dump_table`` was given. Raises ValueError for anything else."""
    if text == _EMPTY:
        return {}
    try:
        # Nearly all have nothing wrapped in them; those that have, and very long numbers, go round.
        found = _unwrapped(json.loads(text)) if _may_be_wrapped(text) else orjson.loads(text)
    except (TypeError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"no table: {error!r}") from None
    if not isinstance(found, dict):
        raise ValueError("no table: a JSON object it is not")
    return found


def _may_be_wrapped(text: str) -> bool:
    return "$" in text or _LONG_NUMBER.search(text) is not None


def _looks_wrapped(table: Mapping[str, Any]) -> bool:
    return len(table) == 1 and next(iter(table)).startswith("$")


def _wrapped(value: object) -> object:  # noqa: PLR0911 - one return a type is the clearest
    match value:
        case float() if not math.isfinite(value):
            return {_FLOAT: repr(value)}
        case bool() | int() | float() | str() | None:
            return value
        case dict():
            inner = {str(name): _wrapped(item) for name, item in value.items()}
            return {_TABLE: inner} if _looks_wrapped(inner) else inner
        case list() | tuple():
            return [_wrapped(item) for item in value]
        case bytes() | bytearray() | memoryview():
            return {_BYTES: b64encode(value).decode()}
        case datetime():
            return {_TIME: value.isoformat()}
        case Decimal():
            return {_DECIMAL: str(value)}
    raise ValueError(f"AMQP has no type for {value!r} ({type(value).__name__})")


def _unwrapped(value: Any) -> Any:  # noqa: PLR0911 - as above
    if isinstance(value, list):
        return [_unwrapped(item) for item in value]
    if not isinstance(value, dict):
        return value
    if _looks_wrapped(value):
        ((kind, inner),) = value.items()
        match kind:
            case "$bytes":
                return b64decode(inner)
            case "$time":
                return datetime.fromisoformat(inner)
            case "$decimal":
                return Decimal(inner)
            case "$float":
                return float(inner)
            case "$table" if isinstance(inner, dict):
                return {name: _unwrapped(item) for name, item in inner.items()}
        raise ValueError(f"a table with {kind!r}, which is not known")
    return {name: _unwrapped(item) for name, item in value.items()}
