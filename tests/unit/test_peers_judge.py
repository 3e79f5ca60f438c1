"""The judge of `make peers` finds what there is to find, and nothing else."""

from __future__ import annotations

import pytest
from peers.contenders import contenders
from peers.history import BEGIN, CONFIRMED, EFFECT, Entry
from peers.judge import Pause, Verdict, ids_in, judge, missing
from peers.nemesis import Done
from peers.report import Row, line, remarks


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

    assert missing(told) == len(verdict.missing)
    found = (len(verdict.missing), verdict.repeated, verdict.reordered, verdict.overlapped)
    assert found == (lost, repeated, reordered, overlapped)


def test_the_longest_pause_lies_between_two_effects() -> None:
    pause = judge(history("c0", "b0", "e0", "c1", "c2", "b1", "e1", "b2", "e2")).pause
    assert (pause.since, pause.until, pause.seconds) == (2, 6, 4)


@pytest.mark.parametrize(
    ("since", "until", "met"),
    [(0.0, 1.0, False), (0.0, 1.8, True), (3.0, 4.0, True), (5.0, 9.0, True), (6.5, 9.0, False)],
)
def test_the_faults_of_a_pause_are_those_that_went_on_in_it_or_right_before(
    since: float, until: float, *, met: bool
) -> None:
    assert Pause(2.0, 6.0).met(since, until) == met


def row(verdict: Verdict, held: set[str]) -> Row:
    return Row(
        contender=next(contenders()),
        verdict=verdict,
        held=frozenset(held),
        waiting=len(held),
        aside=0,
        seconds=60.0,
        drained=None,
        ends=0,
        overruns=0,
        began=0.0,
        done=[Done("the whole worker killed", 1.9, 2.0), Done("Redis killed", 8.0, 9.0)],
        undone=0,
        busy=1.0,
    )


@pytest.mark.parametrize(
    ("held", "lost"),
    [(set(), 1), ({"key-1"}, 0), ({"key-0"}, 1), ({"key-0", "key-2"}, 1)],
    ids=["nothing is left", "it is left", "a copy of another is left", "two copies are left"],
)
def test_what_lies_in_a_queue_hides_no_loss_of_anything_else(held: set[str], lost: int) -> None:
    verdict = judge(history("c0", "b0", "e0", "c1", "c2", "b2", "e2"))

    cells = [cell.strip() for cell in line(row(verdict, held)).split("|")]
    assert (cells[3], cells[8]) == (str(lost), str(len(held)))


def test_the_longest_pause_is_told_with_its_faults() -> None:
    verdict = judge(history("c0", "b0", "e0", "c1", "b1", "c2", "e1"))

    told = remarks(row(verdict, set()))
    assert "longest pause 2.0 to 6.0 s (the whole worker killed at 1.9 s)" in told


@pytest.mark.parametrize(
    "message",
    [b'[["key-3-17", "key-3", 17], {}, {}]', b"{'message_id': 'key-3-17', 'type': 'booked'}"],
)
def test_the_id_of_a_message_is_found_whoever_wrote_it(message: bytes) -> None:
    assert ids_in(message) == {"key-3-17"}
