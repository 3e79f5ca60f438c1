"""What a history tells: executions, faults, gaps, and the story of a key."""

from __future__ import annotations

from typing import Any

from chaos.checker import Case, check
from chaos.executions import faults, gaps, join, owners
from chaos.findings import Findings
from chaos.history import Entry
from chaos.story import story
from judged import ALICE, BOB, killed, outage, paused, ran


def test_the_lines_of_a_ledger_become_executions() -> None:
    def line(what: str, number: int, pid: int, at: float) -> Entry:
        return Entry(
            what=what,
            at=at,
            pid=pid,
            id=f"a#{number}",
            key="a",
            sequence=number,
            handler="h",
            attempt=1,
            shard=3,
            fence=7,
            supervisor="alice",
        )

    found = join(
        [
            line("begin", 0, ALICE, 1.0),
            line("begin", 0, BOB, 2.0),
            line("effect", 0, BOB, 2.5),
            line("effect", 0, ALICE, 3.0),
            line("begin", 1, ALICE, 4.0),
            line("begin", 1, ALICE, 5.0),
            line("effect", 1, ALICE, 6.0),
            line("begin", 2, ALICE, 7.0),
        ]
    )

    times = [(e.sequence, e.pid, e.begin, e.end) for e in found]
    assert times == [
        (0, ALICE, 1.0, 3.0),
        (0, BOB, 2.0, 2.5),
        (1, ALICE, 4.0, None),
        (1, ALICE, 5.0, 6.0),
        (2, ALICE, 7.0, None),
    ]
    assert (found[0].shard, found[0].fence, found[0].supervisor) == (3, 7, "alice")


def test_two_calls_for_one_id_at_once_in_one_process_are_two_executions() -> None:
    def line(what: str, run: int, at: float) -> Entry:
        return Entry(
            what=what, at=at, pid=ALICE, id="a#0", key="a", sequence=0, handler="h", run=run
        )

    lines = [line("begin", 1, 1), line("begin", 2, 2)]
    lines += [line("effect", 1, 3), line("effect", 2, 4), line("end", 1, 5), line("end", 2, 6)]
    found = join(lines)

    assert [(e.begin, e.effect, e.end) for e in found] == [(1, 3, 5), (2, 4, 6)]
    verdict = check(Case(executions=found, wanted=()))
    assert len(verdict.repeated) == len(verdict.key_overlaps) == 1


def test_gaps_are_times_without_a_begin() -> None:
    begins = [1.0, 2.0, 3.0, 7.0, 8.0]
    one = [ran(n, ALICE, at, at) for n, at in enumerate(begins)]
    other = [ran(0, BOB, at, at, shard=1) for at in (1.0, 6.5)]

    assert gaps(one, 2.5, 2.9) == {0: 1.0}
    assert gaps(one, 2.5, 3.5) == {0: 4.0}
    assert gaps(one + other, 4.0, 5.0) == {0: 4.0, 1: 5.5}
    assert gaps(other, 6.0, 10.0) == {1: 5.5}
    assert gaps(other, 6.6, 10.0) == {1: 3.5}, "it is not yet known for how long it lasts"


def test_the_owner_is_who_began_last() -> None:
    rows = [ran(1, BOB, 2, 3, fence=2), ran(0, ALICE, 1, 9), ran(0, ALICE, 4, 5, shard=1)]

    assert owners(rows) == {0: "bob", 1: "alice"}


def test_a_handler_that_fails_has_ended() -> None:
    facts: dict[str, Any] = {"pid": ALICE, "handler": "h", "id": "a#0", "key": "a", "sequence": 0}
    (failed,) = join([Entry(what="begin", at=1, **facts), Entry(what="failed", at=2, **facts)])

    assert (failed.effect, failed.end) == (None, 2)
    assert check(Case(executions=[failed], wanted=())).held


def test_a_fault_is_read_as_it_was_written() -> None:
    for fault in (killed(ALICE, 1), paused(BOB, 1, 2), outage(1, 2)):
        assert faults([Entry(what="fault", at=1, detail=fault.dump())]) == [fault]


def test_the_story_of_a_key_tells_what_happened_around_it_and_no_more() -> None:
    def line(what: str, number: int, at: float, **facts: Any) -> Entry:
        return Entry(what=what, at=at, id=f"a#{number}", key="a", sequence=number, **facts)

    pid = {"pid": ALICE, "handler": "h", "supervisor": "alice"}
    entries = [
        *(line("invoke", n, n) for n in range(6)),
        *(line("begin", n, 10 + n, **pid) for n in (2, 4)),
        *(line("effect", n, 10.5 + n, **pid) for n in (2, 4)),
    ]
    found = Findings(out_of_order=[e for e in join(entries) if e.sequence == 4])
    told = "\n".join(story(found, entries, [killed(ALICE, 15), killed(BOB, 15)]))

    assert "out of order: 1" in told
    assert "invoke    a#3" in told
    assert "a#1" not in told
    assert "kill -9: alice pid 11" in told
    assert "bob" not in told
