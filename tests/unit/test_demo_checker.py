"""The judge of the demo sees every kind of broken promise, and tells its story."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from worker.demo.checker import Checker, Findings, story
from worker.demo.ledger import Execution, Kill

ALICE, BOB = 11, 22  # two processes


def ledger(*rows: tuple[str, int, int]) -> list[Execution]:
    """Return the rows of (path, revision, process); the n-th row is written at second n."""
    return [
        Execution(number, f"{path}#{revision}", path, revision, pid, float(number))
        for number, (path, revision, pid) in enumerate(rows, 1)
    ]


def judge(rows: Sequence[Execution], kills: Iterable[Kill] = (), /, **expected: int) -> Findings:
    checker = Checker(expected)
    checker.see(rows)
    return checker.findings(list(kills), {}, {})


def test_revisions_that_rise_by_one_are_what_was_promised() -> None:
    found = judge(ledger(("a", 1, ALICE), ("b", 1, BOB), ("a", 2, BOB)), a=2, b=1)

    assert found.held
    assert found.applied == 3
    assert found.explained == []


def test_a_second_effect_is_explained_by_the_kill_of_the_first_process() -> None:
    rows = ledger(("a", 1, ALICE), ("a", 1, BOB), ("a", 2, BOB))

    found = judge(rows, [Kill(ALICE, 1.25)], a=2)

    assert found.held
    assert found.applied == 2
    assert [effect.window for effect in found.explained] == [0.25]


def test_no_kill_explains_a_second_effect_where_effect_and_id_are_one_transaction() -> None:
    checker = Checker({"a": 2}, has_window=False)
    checker.see(ledger(("a", 1, ALICE), ("a", 1, BOB), ("a", 2, BOB)))

    found = checker.findings([Kill(ALICE, 1.25)], {}, {})

    assert not found.held
    assert found.explained == []
    assert len(found.unexplained) == 1
    assert "rows 1 and 2: process 11 was killed between them, but" in "\n".join(
        story(found, lambda _: [])
    )


def test_a_second_effect_without_a_kill_is_a_broken_promise() -> None:
    assert not judge(ledger(("a", 1, ALICE), ("a", 1, BOB)), a=1).held


def test_a_second_effect_in_the_same_process_is_a_broken_promise() -> None:
    rows = ledger(("a", 1, ALICE), ("a", 1, ALICE))

    assert not judge(rows, [Kill(ALICE, 1.5)], a=1).held


def test_a_kill_after_the_second_effect_explains_nothing() -> None:
    rows = ledger(("a", 1, ALICE), ("a", 1, BOB))

    assert len(judge(rows, [Kill(ALICE, 2.5)], a=1).unexplained) == 1


def test_an_effect_that_was_forgotten_for_long_is_no_crash_window() -> None:
    rows = [row._replace(at=60.0 * row.number) for row in ledger(("a", 1, ALICE), ("a", 1, BOB))]

    assert len(judge(rows, [Kill(ALICE, 119.0)], a=1).unexplained) == 1


def test_a_revision_that_overtook_its_predecessor_is_out_of_order() -> None:
    found = judge(ledger(("a", 2, ALICE), ("a", 1, BOB)), a=2)

    assert [row.revision for row in found.out_of_order] == [2, 1]
    assert found.lost == []


def test_several_revisions_are_replayed_after_the_process_died_that_had_not_recorded_them() -> None:
    rows = ledger(*[("a", n, ALICE) for n in (1, 2, 3)], *[("a", n, BOB) for n in (2, 3, 4)])

    found = judge(rows, [Kill(ALICE, 3.5)], a=4)

    assert found.held
    assert [(e.second.revision, len(e.overtaken)) for e in found.explained] == [(2, 1), (3, 0)]


def test_a_replay_that_stops_half_way_leaves_the_past_in_place() -> None:
    rows = ledger(*[("a", n, ALICE) for n in (1, 2, 3)], ("a", 2, BOB))

    found = judge(rows, [Kill(ALICE, 3.5)], a=3)

    assert [row.number for row in found.out_of_order] == [4]


def test_a_replay_must_not_leave_out_a_revision() -> None:
    rows = ledger(*[("a", n, ALICE) for n in (1, 2, 3)], ("a", 1, BOB), ("a", 3, BOB))

    assert [row.number for row in judge(rows, [Kill(ALICE, 3.5)], a=3).out_of_order] == [5]


def test_a_replay_behind_a_revision_of_the_living_is_a_broken_promise() -> None:
    rows = ledger(("a", 1, ALICE), ("a", 2, BOB), ("a", 1, BOB), ("a", 2, BOB))

    assert len(judge(rows, [Kill(ALICE, 1.5)], a=2).unexplained) == 2


def test_a_revision_that_is_missing_is_lost_wherever_it_was() -> None:
    found = judge(ledger(("a", 1, ALICE), ("a", 3, ALICE)), a=4, b=1)

    assert found.lost == [("a", 2), ("a", 4), ("b", 1)]


def test_files_that_are_wrong_missing_or_too_many_are_found() -> None:
    found = Checker({}).findings([], {"a": "1", "b": "2"}, {"b": "3", "c": "4"})

    assert found.differences == [("a", "1", None), ("b", "2", "3"), ("c", None, "4")]
    assert not found.held


def test_it_follows_a_ledger_that_grows() -> None:
    rows = ledger(("a", 1, ALICE), ("a", 2, ALICE), ("a", 2, BOB))
    checker = Checker({"a": 2})

    checker.see(rows[:1])
    assert not checker.complete
    checker.see(rows[1:])

    assert checker.complete
    assert (checker.applied, checker.repeated, checker.out_of_order) == (2, 1, 0)


def test_the_story_names_path_revision_and_rows() -> None:
    rows = ledger(("a", 1, ALICE), ("a", 1, BOB), ("a", 3, BOB))

    told = "\n".join(story(judge(rows, a=3), lambda path: [r for r in rows if r.path == path]))

    assert "out of order: 1\n  a: revision 3, row 3" in told
    assert "lost: 1\n  a: revision 2" in told
    assert "revision 1, rows 1 and 2: process 11 was not killed between them" in told
    assert "ledger of a:\n  row 1: revision 1, process 11, at 1.000 s, event a#1" in told


def test_a_story_of_many_faults_stays_readable() -> None:
    found = judge(ledger(("a", 1, ALICE)), a=1, **{f"path-{n}": 3 for n in range(100)})

    told = story(found, lambda path: [])

    assert "lost: 300" in told
    assert len(told) < 15
