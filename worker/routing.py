"""Which handlers a name reaches. Topic patterns as AMQP has them. Pure."""

from __future__ import annotations


def is_pattern(name: str) -> bool:
    """Tell whether ``name`` holds a wildcard word."""
    return any(word in ("*", "#") for word in name.split("."))


def matches(pattern: str, name: str) -> bool:
    """Tell whether a topic ``pattern`` takes ``name``.

    Words are separated by dots; ``*`` is exactly one word, ``#`` zero or more (AMQP 0-9-1,
    section 3.1.3.3).
    """
    return _match(pattern.split("."), name.split(".") if name else [])


def _match(pattern: list[str], words: list[str]) -> bool:
    """Match word by word; ``reach`` holds the positions in ``words`` that a prefix can end at."""
    reach = {0}
    for part in pattern:
        if part == "#":
            reach = set(range(min(reach), len(words) + 1)) if reach else reach
        else:
            reach = {i + 1 for i in reach if i < len(words) and part in ("*", words[i])}
    return len(words) in reach
