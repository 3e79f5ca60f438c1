"""Topic patterns as AMQP has them: what handlers and bindings are chosen by. Pure.

Words are separated by dots; ``*`` is exactly one word, ``#`` zero or more (AMQP 0-9-1, section
3.1.3.3).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def is_pattern(name: str) -> bool:
    """Tell whether ``name`` holds a wildcard word."""
    return any(word in ("*", "#") for word in topic_words(name))


def matches(pattern: str, name: str) -> bool:
    """Tell whether a topic ``pattern`` takes ``name``."""
    return topic_matches(topic_words(pattern), topic_words(name))


def overlap(pattern: str, other: str) -> bool:
    """Tell whether there is a name that two topic patterns both take."""
    one, two = topic_words(pattern), topic_words(other)
    ends = {(0, 0)}  # how far into both patterns the words of a name can have come
    reached: set[tuple[int, int]] = set()
    while ends - reached:
        i, j = place = (ends - reached).pop()
        reached.add(place)
        mine, theirs = one[i : i + 1], two[j : j + 1]
        if mine == ["#"]:
            ends |= {(i + 1, j)} | ({(i, j + 1)} if theirs else set())
        if theirs == ["#"]:
            ends |= {(i, j + 1)} | ({(i + 1, j)} if mine else set())
        if mine and theirs and (mine == theirs or "*" in (*mine, *theirs)):
            ends.add((i + 1, j + 1))
    return (len(one), len(two)) in ends


def topic_words(key: str) -> list[str]:
    """Return the words of a routing key or a pattern; the empty key has none."""
    return key.split(".") if key else []


def topic_matches(pattern: Sequence[str], words: Sequence[str]) -> bool:
    """Tell whether the words of a name or a routing key fit those of a pattern.

    Looks at each pair of words once, however many wildcards there are.
    """
    ends = {0}  # how many words the pattern so far can have used up
    for part in pattern:
        if part == "#":
            ends = set(range(min(ends), len(words) + 1))
        else:
            ends = {n + 1 for n in ends if n < len(words) and part in ("*", words[n])}
        if not ends:
            return False
    return len(words) in ends
