"""The judge of several supervisors sees every kind of broken promise."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

from chaos.checker import Case, check
from judged import ALICE, BOB, judge, killed, paused, ran


def test_a_shard_that_changes_hands_in_order_is_what_was_promised() -> None:
    found = judge([ran(0, ALICE, 1, 2), ran(1, ALICE, 3, 4), ran(2, BOB, 4, 5, fence=2)])

    assert found.held
    assert found.undisturbed
    assert found.summary == "3 executions, 3 effects"


def test_what_was_confirmed_and_has_no_effect_at_one_of_the_handlers_is_lost() -> None:
    wanted = {*product(["h", "g"], ["a#0", "a#1"])}
    found = check(Case(executions=[ran(0, ALICE, 1, 2)], wanted=wanted))

    assert found.lost == ["g a#0", "g a#1", "h a#1"]
    assert not found.held


def test_what_began_and_was_killed_is_lost_until_somebody_else_does_it() -> None:
    broken_off = ran(0, ALICE, 1, None)

    case = Case(executions=[broken_off], wanted={("h", "a#0")}, faults=[killed(ALICE, 1.5)])
    assert check(case).lost
    found = judge([broken_off, ran(0, BOB, 2, 3, fence=2)], killed(ALICE, 1.5))
    assert found.held
    assert found.broken_off == [broken_off]
    assert not found.undisturbed


def test_a_handler_that_ends_without_effect_though_nothing_happened_to_it_is_told() -> None:
    found = judge([ran(0, ALICE, 1, None), ran(0, ALICE, 2, 3)])

    assert len(found.unfinished) == 1
    assert not found.held


def test_an_effect_that_overtook_its_predecessor_is_out_of_order() -> None:
    found = judge([ran(1, ALICE, 1, 2), ran(0, ALICE, 3, 4)])

    assert [execution.sequence for execution in found.out_of_order] == [1, 0]


def test_a_sequence_number_that_is_missing_shows_in_the_order() -> None:
    assert judge([ran(0, ALICE, 1, 2), ran(2, ALICE, 3, 4)]).out_of_order


def test_several_effects_are_repeated_in_order_after_a_kill() -> None:
    before = [ran(n, ALICE, n, n + 0.5) for n in range(3)]
    again = [ran(n, BOB, n + 5, n + 5.5, fence=2) for n in (1, 2, 3)]

    assert judge(before + again, killed(ALICE, 2.5)).held is True
    assert judge(before + again[:1], killed(ALICE, 2.5)).out_of_order == again[:1]
    assert judge([*before, again[0], again[2]], killed(ALICE, 2.5)).out_of_order == [again[2]]


def test_keys_and_handlers_have_sequences_of_their_own() -> None:
    assert judge([ran(0, ALICE, 1, 2), ran(0, ALICE, 3, 4, key="b")]).held


def test_two_handlers_of_a_key_at_once_are_a_broken_promise() -> None:
    found = judge([ran(0, ALICE, 1, 3), ran(1, ALICE, 2, 4)])

    assert len(found.key_overlaps) == 1
    assert found.owner_overlaps == []


def test_the_handlers_of_a_key_take_turns_also_where_they_are_of_different_events() -> None:
    one, other = ran(0, ALICE, 1, 3), replace(ran(1, ALICE, 2, 4), handler="g")

    assert judge([one, other]).key_overlaps == [(one, other)]
    assert judge([one, replace(other, key="b")]).key_overlaps == []


def test_what_has_no_key_waits_for_nothing() -> None:
    runs = [replace(ran(n, ALICE, 1, 3), key="", sequence=-1) for n in range(2)]
    case = Case(executions=runs, wanted=(), unordered={"h"})

    assert check(case).held
    twice = [replace(each, id="a#0") for each in runs]
    assert len(check(replace(case, executions=twice)).key_overlaps) == 1


def test_two_processes_of_a_shard_at_once_are_a_broken_promise_whatever_the_fence() -> None:
    for fence in (1, 2):
        found = judge([ran(0, ALICE, 1, 3), ran(0, BOB, 2, 4, key="b", fence=fence)])

        assert len(found.owner_overlaps) == 1
        assert found.stale == []
        assert not found.held


def test_two_processes_of_two_shards_at_once_are_what_shards_are_for() -> None:
    parallel = [ran(0, ALICE, 1, 3), ran(0, BOB, 2, 4, key="b", shard=1)]

    assert judge(parallel).held


def test_with_single_active_two_processes_at_once_are_a_broken_promise_on_any_shard() -> None:
    parallel = [ran(0, ALICE, 1, 3), ran(0, BOB, 2, 4, key="b", shard=1)]

    assert judge(parallel, single_active=True).owner_overlaps == [tuple(parallel)]


def test_a_fence_that_falls_is_a_broken_promise_even_of_a_sleeper() -> None:
    rows = [ran(0, BOB, 1, 2, fence=2), ran(1, ALICE, 3, 4, fence=1)]

    assert judge(rows).fallen_fences == [tuple(rows)]
    assert not judge(rows, paused(ALICE, 0.5, 2.5)).held


def test_a_fence_is_of_one_life_of_one_supervisor() -> None:
    pair = [ran(0, ALICE, 1, 2), ran(1, BOB, 3, 4)]

    assert judge(pair).shared_fences == [tuple(pair)]
    assert not judge(pair, killed(ALICE, 2.5)).held
    lives = [replace(ran(n, ALICE, n, n + 0.5), life=life) for n, life in enumerate((7, 7, 8))]
    assert judge(lives[:2]).held
    assert judge(lives).shared_fences == [(lives[0], lives[2])]
    assert (
        judge([replace(each, pid=33) if each.life == 8 else each for each in lives]).held is False
    )
    nobody_said = [replace(each, life=0) for each in lives]
    assert judge(nobody_said).held
    assert judge([replace(each, fence=0) for each in pair]).held, "there are no leases"


def test_a_single_active_service_has_one_fence() -> None:
    pair = [ran(0, ALICE, 1, 2), ran(0, BOB, 3, 4, key="b", shard=1)]

    assert judge(pair).held
    assert judge(pair, single_active=True).shared_fences == [tuple(pair)]


def test_shards_have_fences_of_their_own() -> None:
    assert judge([ran(0, BOB, 1, 2, fence=2), ran(0, BOB, 3, 4, key="b", shard=1, fence=1)]).held


def test_a_story_of_many_faults_stays_readable() -> None:
    found = check(Case(executions=[], wanted={("h", f"a#{n}") for n in range(100)}))

    assert "lost: 100" in found.summary
    assert len(found.summary.splitlines()) < 10
