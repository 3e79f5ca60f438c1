"""From what a source says of a setting, often as text, to a checked value of the type of it."""

from __future__ import annotations

from dataclasses import MISSING
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import Field


def convert(spec: Field[Any], value: object) -> object:
    """Return ``value`` as the type of the setting; raise ValueError with what would do."""
    default = spec.default
    if default is MISSING:  # pragma: no cover - every setting has a default
        raise ValueError("no default")
    converted: object
    if isinstance(default, bool):
        converted = _boolean(value)
    elif isinstance(default, int | float):
        converted = _number(value, type(default))
    elif isinstance(default, tuple):
        parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, list | tuple) or not all(isinstance(p, str) for p in parts):
            raise ValueError(f"{value!r} is not a list of names")
        converted = tuple(p.strip() for p in parts if p.strip())
    elif isinstance(value, str):
        converted = value.strip()
    else:
        raise ValueError(f"{value!r} is not a text")
    _check_range(spec, converted)
    return converted


def _boolean(value: object) -> bool:
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    if text in ("1", "true", "yes", "on"):
        return True
    if text in ("0", "false", "no", "off"):
        return False
    raise ValueError(f"{value!r} is neither true nor false")


def _number(value: object, kind: type[int | float]) -> int | float:
    wanted = "a whole number" if kind is int else "a number"
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{value!r} is not {wanted}")
    try:
        number = kind(value)
    except (ValueError, OverflowError):
        raise ValueError(f"{value!r} is not {wanted}") from None
    if number != number or (isinstance(value, float) and number != value):  # noqa: PLR0124 - NaN
        raise ValueError(f"{value!r} is not {wanted}")
    return number


def _check_range(spec: Field[Any], value: object) -> None:
    facts = spec.metadata
    if facts["choices"] and value not in facts["choices"]:
        raise ValueError(f"{value!r} is none of {', '.join(c for c in facts['choices'] if c)}")
    if isinstance(value, int | float) and not isinstance(value, bool):
        low, high = facts["low"], facts["high"]
        if low is not None and value < low:
            raise ValueError(f"{value} is too small; at least {low}")
        if high is not None and value > high:
            raise ValueError(f"{value} is too large; at most {high}")


def place_mistake(value: str, extra: str) -> str:
    """Return what is wrong about a setting that says where an identity lies; empty: nothing.

    ``extra`` is what it may be beside the places; empty: nothing else.
    """
    place, _, rest = value.partition(":")
    if (value == extra and extra) or (place in ("property", "header", "body") and rest):
        return ""
    also = f" or {extra}" if extra else ""
    return f"{value!r} is none of property:NAME, header:NAME, body:path.to.field{also}"
