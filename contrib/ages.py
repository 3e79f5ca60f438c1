"""Ages: what is older than one is purged."""

from __future__ import annotations


def age(seconds: float) -> float:
    """Return ``seconds``. Raises ValueError where all that there is, or nothing, is older."""
    if not seconds >= 0:  # also where it is no number
        raise ValueError(f"older_than={seconds!r}: seconds, zero or more")
    return seconds
