"""The judge of `make peers` finds what there is to find, and nothing else."""

from __future__ import annotations

import pytest
from peers.history import BEGIN, CONFIRMED, EFFECT, Entry
from peers.judge import judge, missing


def history(*words: str) -> list[Entry]:
    """Make lines of words such as ``c0``, ``b0@7``, ``e0@7``: what, sequence, process."""
    what = {"c": CONFIRMED, "b": BEGIN, "e": EFFECT}
    entries = []
    for at, word in enumerate(words):
        name, _, pid = word.partition("@")
        number = int(name[1:])
        entries.append(
            Entry(
                what=what[name[0]],
                id=f"key-{number}",
                key="key",
                sequence=number,
                pid=int(pid or 1),
                thread=1,
                at=at,
            )
        )
    return entries


@pytest.mark.parametrize(
    ("words", "lost", "repeated", "reordered", "overlapped"),
    [
        ("c0 b0 e0 c1 b1 e1", 0, 0, 0, 0),
        ("b0 e0 c0", 0, 0, 0, 0),  # the confirm came later than the effect
        ("c0 b0", 1, 0, 0, 0),
        ("b0 e0", 0, 0, 0, 0),  # never confirmed
        ("c0 b0@1 b0@2 e0@2", 0, 0, 0, 0),  # process 1 was killed
        ("c0 b0@1 e0@1 b0@2 e0@2", 0, 1, 0, 0),
        ("c0 c1 b1 e1 b0 e0", 0, 0, 1, 0),
        ("c0 c1 c2 b2 e2 b1 e1 b0 e0", 0, 0, 2, 0),
        ("c0 c1 b0 e0 b1 e1 b0 e0", 0, 1, 0, 0),  # a repetition is no disorder
        ("c0 c1 b0@1 b1@2 e0@1 e1@2", 0, 0, 0, 1),
        ("c0 c1 c2 b0@1 b1@2 e1@2 b2@2 e2@2 e0@1", 0, 0, 1, 2),
        ("c0 b0@1 b0@2 e0@1 e0@2", 0, 1, 0, 1),
    ],
)
def test_what_a_history_shows(
    words: str, lost: int, repeated: int, reordered: int, overlapped: int
) -> None:
    told = history(*words.split())
    verdict = judge(told)

    assert missing(told) == verdict.missing
    found = (verdict.missing, verdict.repeated, verdict.reordered, verdict.overlapped)
    assert found == (lost, repeated, reordered, overlapped)


def test_the_longest_pause_lies_between_two_effects() -> None:
    assert judge(history("c0", "b0", "e0", "c1", "c2", "b1", "e1", "b2", "e2")).pause == 4
