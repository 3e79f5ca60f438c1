"""Which names events, commands and services can have, and what exchanges are named after them."""

from __future__ import annotations

from worker.errors import ConfigurationError

_MAX_NAME = 200  # a routing key is at most 255 bytes; queues and prefixes need the rest
_MAX_SERVICE = 60


def check_name(name: object, what: str, *, is_pattern: bool = False) -> str:
    """Return ``name`` if it can be a routing key, or a topic pattern where that is meant.

    Raises ConfigurationError where it cannot.
    """
    if not isinstance(name, str) or not name or len(name.encode()) > _MAX_NAME:
        raise ConfigurationError(
            f"{what}: {name!r} cannot be a name; use 1 to {_MAX_NAME} bytes, as 'user.deposited'"
        )
    forbidden, told = ("\0", "NUL") if is_pattern else ("#*\0", "one of '*', '#' and NUL")
    if any(c in forbidden or c.isspace() for c in name):
        raise ConfigurationError(f"{what}: {name!r} holds white space or {told}")
    if is_pattern and any(len(word) > 1 and set(word) & {"*", "#"} for word in name.split(".")):
        raise ConfigurationError(
            f"{what}: {name!r} would match nothing: * and # stand for whole words between dots, as"
            " in 'user.*'"
        )
    return name


def check_service(name: str) -> None:
    """Raise ConfigurationError where ``name`` cannot be a service's."""
    check_name(name, "App")
    if len(name) > _MAX_SERVICE or not all(c.isalnum() or c in "-_." for c in name):
        raise ConfigurationError(
            f"App({name!r}): a service's name is up to {_MAX_SERVICE} letters, digits, '-', '_'"
            " and '.', since its queues are named after it"
        )


def front_exchange(prefix: str, generation: int = 1) -> str:
    """Return the name of the exchange that spreads a service's messages over its shards."""
    return f"{prefix}.g{generation}"
