"""What a fault explains to the judge, and what it does not."""

from __future__ import annotations

from dataclasses import replace

from chaos.checker import Case, check
from chaos.executions import Fault, Kind
from judged import ALICE, BOB, gone, judge, killed, outage, paused, ran


def test_a_second_effect_that_nothing_explains_is_a_broken_promise() -> None:
    twice = [ran(0, ALICE, 1, 2), ran(0, BOB, 3, 4, fence=2)]

    assert judge(twice).repeated == [tuple(twice)]
    assert not judge(twice).held


def test_a_second_effect_is_explained_by_the_kill_of_who_had_the_first() -> None:
    twice = [ran(0, ALICE, 1, 2), ran(0, BOB, 3, 4, fence=2)]

    found = judge(twice, killed(ALICE, 2.1))

    assert found.held
    assert found.explained == [tuple(twice)]
    assert "second effects that a fault explains: 1" in found.summary


def test_a_kill_of_another_or_before_or_long_after_the_effect_explains_no_second_one() -> None:
    twice = [ran(0, ALICE, 10, 11), ran(0, BOB, 20, 21, fence=2)]

    for fault in (killed(BOB, 11.1), killed(ALICE, 10.5), killed(ALICE, 15), killed(ALICE, 20.5)):
        assert judge(twice, fault).repeated, fault


def test_a_pause_explains_a_second_effect_only_of_who_lost_the_shard_by_it() -> None:
    sleeper = ran(0, ALICE, 1, 9)
    other = ran(0, BOB, 5, 6, fence=2)

    assert judge([sleeper, other], paused(ALICE, 2, 8)).explained == [(other, sleeper)]
    assert judge([sleeper, other], paused(BOB, 2, 8)).repeated
    later = [ran(0, ALICE, 1, 2), ran(0, BOB, 5, 6)]
    assert judge(later, paused(ALICE, 2.1, 4)).repeated, "with the same fence it lost nothing"


def test_a_cut_explains_a_second_effect_that_could_not_be_recorded() -> None:
    twice = [ran(0, ALICE, 1, 2), ran(0, BOB, 9, 10, fence=2)]

    assert judge(twice, Fault(Kind.CUT, "alice", 1.9, 8)).held
    assert judge(twice, Fault(Kind.CUT, "alice", 5, 8)).repeated


def test_who_slept_beyond_its_lease_is_stale_and_told() -> None:
    sleeper = ran(0, ALICE, 1, 9)
    others = [ran(0, BOB, 5, 6, fence=2), ran(1, BOB, 7, 8, fence=2)]

    found = judge([sleeper, *others], paused(ALICE, 2, 8.5))

    assert found.held
    assert found.stale == [(sleeper, others[0])]
    assert "handlers that outlived their lease: 1" in found.summary


def test_what_a_sleeper_alone_did_belongs_to_the_order_of_its_key() -> None:
    sleeper = ran(0, ALICE, 1, 9)
    others = [ran(0, BOB, 5, 6, key="b", fence=2), ran(1, BOB, 9.5, 10, fence=2)]

    assert judge([sleeper, *others], paused(ALICE, 2, 8.5)).held


def test_who_slept_and_has_no_lower_fence_is_no_excuse() -> None:
    pair = [ran(0, ALICE, 1, 9, fence=2), ran(0, BOB, 5, 6, key="b", fence=2)]

    assert judge(pair, paused(ALICE, 2, 8)).owner_overlaps


def test_a_pause_of_the_newer_owner_is_no_excuse_for_the_older_one() -> None:
    pair = [ran(0, ALICE, 1, 9), ran(0, BOB, 5, 6, key="b", fence=2)]

    assert judge(pair, paused(BOB, 2, 8)).owner_overlaps


def test_what_a_pause_before_its_beginning_left_over_is_no_excuse() -> None:
    pair = [ran(0, ALICE, 4, 9), ran(0, BOB, 5, 6, key="b", fence=2)]

    assert judge(pair, paused(ALICE, 2, 3)).owner_overlaps


def test_a_pause_costs_no_lease_before_that_can_have_ended() -> None:
    pair = [ran(0, ALICE, 1, 9), ran(0, BOB, 5, 6, key="b", fence=2)]

    for fault in (paused(ALICE, 4, 8), paused(ALICE, 2, 3), Fault(Kind.LAPSE, "alice", 4, 8)):
        assert judge(pair, fault).owner_overlaps, fault
    assert judge(pair, paused(ALICE, 3, 8)).held, "renewed a second before, for three"
    case = Case(executions=pair, wanted=(), faults=[paused(ALICE, 2, 8)], lease_ttl=10)
    assert check(case).owner_overlaps


def test_a_pause_that_begins_after_the_other_one_did_is_no_excuse() -> None:
    pair = [ran(0, ALICE, 1, 19), ran(0, BOB, 5, 16, key="b", fence=2)]

    assert judge(pair, paused(ALICE, 5.5, 18)).owner_overlaps
    twice = [ran(0, ALICE, 1, 2), ran(0, BOB, 3, 4, fence=2)]
    assert judge(twice, Fault(Kind.CUT, "alice", 3, 30)).repeated


def test_a_cut_explains_no_second_effect_before_the_claim_can_have_ended() -> None:
    twice = [ran(0, ALICE, 1, 2), ran(0, BOB, 5, 6, fence=2)]
    case = Case(executions=twice, wanted=(), faults=[Fault(Kind.CUT, "alice", 1.9, 8)])

    assert check(case).explained
    assert check(replace(case, claim_ttl=10)).repeated
    assert check(replace(case, lease_ttl=10)).repeated
    jump = Fault(Kind.OTHER, "", 3, 4, what="clock-ahead")
    assert check(replace(case, claim_ttl=10, faults=[*case.faults, jump])).explained


def test_a_clock_ends_the_claims_of_its_time_and_no_others() -> None:
    twice = [ran(0, ALICE, 31, 32), ran(0, BOB, 35, 36, fence=2)]
    cut = Fault(Kind.CUT, "alice", 31.9, 38)
    case = Case(executions=twice, wanted=(), faults=[cut], claim_ttl=10)

    for since, until, held in ((33, 34, True), (20, 22, True), (3, 4, False), (40, 50, False)):
        for jump in (
            Fault(Kind.OTHER, "", since, until, what="clock-ahead"),
            Fault(Kind.CLOCK, "", since, until, what="redis-clock-ahead"),
        ):
            assert check(replace(case, faults=[cut, jump])).held is held, jump


def test_troubles_that_follow_upon_each_other_are_as_long_as_one() -> None:
    pair = [ran(0, ALICE, 1, 9), ran(0, BOB, 5, 6, key="b", fence=2)]
    before, after = Fault(Kind.CUT, "alice", 2, 3), paused(ALICE, 4.5, 8)

    assert judge(pair, before, after).held
    assert judge(pair, after).owner_overlaps
    assert judge(pair, replace(before, supervisor="bob"), after).owner_overlaps
    assert judge(pair, Fault(Kind.OTHER, "alice", 2, 4), after).owner_overlaps


def test_who_outlived_its_lease_runs_one_handler_of_a_key_at_a_time_all_the_same() -> None:
    sleepers = [ran(0, ALICE, 1, 9), ran(1, ALICE, 1.5, 9.5)]
    other = ran(2, BOB, 5, 6, fence=2)

    found = judge([*sleepers, other], paused(ALICE, 2, 8))
    assert [older for older, _ in found.stale] == sleepers
    assert found.key_overlaps == [tuple(sleepers)]


def test_what_was_killed_ends_with_its_process() -> None:
    killed_first = [ran(0, ALICE, 1, None), ran(0, BOB, 5, 6, key="b", fence=2)]

    assert judge(killed_first, killed(ALICE, 2)).owner_overlaps == []
    assert judge(killed_first, killed(ALICE, 5.5)).owner_overlaps


def test_a_kill_explains_what_could_not_be_recorded_since_an_outage_began() -> None:
    twice = [ran(0, ALICE, 1, 2), ran(0, BOB, 9, 10, fence=2)]

    assert judge(twice, killed(ALICE, 7)).repeated
    assert judge(twice, killed(ALICE, 7), outage(1.5, 7)).held
    assert judge(twice, killed(ALICE, 7), outage(1.5, 4)).repeated, "it had time to record it"
    assert judge(twice, outage(1.5, 7)).repeated, "it could record it after that"


def test_who_ends_while_nothing_can_be_recorded_leaves_it_to_be_done_again() -> None:
    twice = [ran(0, ALICE, 1, 2), ran(0, BOB, 9, 10, fence=2)]
    end = gone(ALICE, 4.4, 4.5)

    assert judge(twice, outage(1.5, 5), end).held
    assert judge(twice, outage(1.5, 3.6), end).repeated, "it had a last try"
    assert judge(twice, end).repeated
    assert judge(twice, outage(1.5, 5), gone(BOB, 4.4, 4.5)).repeated
    assert judge(twice, outage(1.5, 12), gone(ALICE, 10.5, 10.6)).repeated, "it ended after that"


def test_so_does_a_kill_of_who_was_cut_off_from_the_store() -> None:
    twice = [ran(0, ALICE, 1, 2), replace(ran(0, BOB, 9, 10), supervisor="alice")]
    cut = Fault(Kind.CUT, "alice", 1.5, 7)

    assert judge(twice, killed(ALICE, 7), cut).held
    assert judge(twice, killed(ALICE, 7), replace(cut, until=4)).repeated, "it had time"
    assert judge(twice, killed(ALICE, 7), replace(cut, supervisor="bob")).repeated
    assert judge(twice, cut).repeated, "it could record it after that"


def test_who_waits_for_a_broker_that_hangs_records_nothing_for_so_long() -> None:
    twice = [ran(0, ALICE, 1, 2), ran(0, BOB, 40, 41, fence=2)]
    hang = Fault(Kind.HANG, "", 1.5, 7)

    assert judge(twice, killed(ALICE, 7), hang).held
    assert judge(twice, killed(ALICE, 7), replace(hang, until=4)).repeated, "it had time"
    assert judge(twice, hang).repeated, "it could record it after that"
    for died, held in ((16, True), (30, False)):
        found = judge(twice, killed(ALICE, died), replace(hang, until=30))
        assert found.held is held, "it gives the broker up"


def test_one_trouble_may_follow_upon_another_before_what_was_done_is_recorded() -> None:
    twice = [ran(0, ALICE, 1, 2), ran(0, BOB, 29, 30, fence=2)]
    troubles = [Fault(Kind.HANG, "", 3.5, 9), outage(1.5, 4), Fault(Kind.CUT, "alice", 9.5, 12)]

    assert judge(twice, killed(ALICE, 12), *troubles).held
    assert judge(twice, killed(ALICE, 12), *troubles[:2]).repeated, "it had time after the hang"
    assert judge(twice, killed(ALICE, 12), troubles[0], troubles[2]).repeated, "or before it"


def test_what_a_store_forgot_may_be_done_again_and_nothing_later() -> None:
    twice = [ran(0, ALICE, 1, 2), ran(0, BOB, 9, 10, fence=2)]
    forgot = Fault(Kind.AMNESIA, "", 3, 4)

    assert judge(twice, forgot).held
    assert judge(twice, replace(forgot, since=11, until=12)).repeated
    assert judge(twice, replace(forgot, since=0, until=1)).repeated


def test_what_the_broker_knows_to_be_done_comes_no_more_whatever_the_store_forgets() -> None:
    twice = [ran(0, ALICE, 1, 2), ran(0, BOB, 29, 30, fence=2)]
    case = Case(executions=twice, wanted=(), faults=[Fault(Kind.AMNESIA, "", 20, 21)])

    assert check(case).repeated
    assert check(replace(case, published_again={"a#0"})).held
    for kept in (Fault(Kind.BROKER, "", 3, 19), Fault(Kind.HANG, "", 1, 19), outage(1.5, 19)):
        assert check(replace(case, faults=[*case.faults, kept])).held, kept
        short = replace(kept, until=9)
        assert check(replace(case, faults=[*case.faults, short])).repeated, short
    late = Fault(Kind.BROKER, "", 6, 30)
    assert check(replace(case, faults=[*case.faults, late])).repeated


def test_who_has_what_a_dead_process_left_acknowledges_it_in_time() -> None:
    twice = [ran(0, ALICE, 1, 2), ran(0, BOB, 49, 50, fence=2)]
    kill = killed(ALICE, 3.5)
    forgot = Fault(Kind.AMNESIA, "", 20, 21)

    assert judge(twice, kill, forgot).held
    assert judge(twice, kill, replace(forgot, since=40, until=41)).repeated
    assert judge(twice, replace(kill, since=9), forgot).repeated, "it was acknowledged by then"


def test_what_is_done_waits_for_its_acknowledgement_behind_what_is_not() -> None:
    slow = ran(0, ALICE, 0.5, 19, key="b")
    twice = [ran(0, ALICE, 1, 2), ran(0, BOB, 29, 30, fence=2)]
    case = Case(
        executions=[slow, *twice],
        wanted=(),
        faults=[Fault(Kind.AMNESIA, "", 20, 21)],
        sent={"b#0": 0.1, "a#0": 0.2},
    )

    assert check(case).held
    assert check(replace(case, sent={"b#0": 2, "a#0": 0.2})).repeated, "it came behind it"
    others = [ran(0, ALICE, 0.5, 9, key="b"), replace(slow, shard=1)]
    for other in others:
        assert check(replace(case, executions=[other, *twice])).repeated, other
    again = ran(0, BOB, 28, 29, key="b", fence=2)
    once_more = [others[0], again, *twice]
    assert len(check(replace(case, executions=once_more)).repeated) == 2, "done, and once more"
    failing = replace(slow, effect=None)
    assert check(replace(case, executions=[failing, *twice])).held, "or not done at all"
    for end, held in ((9, False), (19, True)):
        other_handler = replace(ran(0, ALICE, 2, end), handler="g")
        found = check(replace(case, executions=[*twice, other_handler]))
        assert (not found.repeated) is held, "all handlers of the event"


def test_where_effect_and_memory_are_one_transaction_nothing_explains_a_second_effect() -> None:
    twice = [ran(0, ALICE, 1, 2), ran(0, BOB, 3, 4, fence=2)]
    case = Case(executions=twice, wanted=(), faults=[killed(ALICE, 2.1)])

    assert check(case).held
    assert check(replace(case, transactional=True)).repeated == [tuple(twice)]


def test_what_nobody_was_killed_by_excuses_no_handler_without_an_end() -> None:
    broken_off = ran(0, ALICE, 1, None)
    others = [outage(0.5, 2), Fault(Kind.OTHER, "", 0.5, 2), Fault(Kind.AMNESIA, "", 0.5, 2)]

    assert check(Case(executions=[broken_off], wanted=(), faults=others)).unfinished
    assert check(Case(executions=[broken_off], wanted=(), faults=[killed(ALICE, 0.5)])).unfinished
    assert check(Case(executions=[broken_off], wanted=(), faults=[killed(ALICE, 0.9)])).held, (
        "who notes its own death goes on for a moment"
    )


def test_what_began_as_its_process_died_does_not_run_on() -> None:
    pair = [ran(0, ALICE, 1, None), ran(0, BOB, 5, 6, key="b", fence=2)]

    assert judge(pair, killed(ALICE, 0.9), Fault(Kind.OTHER, "", 7, 8)).held


def test_a_cut_or_a_pause_ends_no_handler() -> None:
    hung = Case(executions=[ran(0, ALICE, 5, None)], wanted=())

    for fault in (Fault(Kind.CUT, "alice", 25, 30), paused(ALICE, 25, 30), paused(ALICE, 5.1, 9)):
        assert check(replace(hung, faults=[fault])).unfinished, fault


def test_who_died_of_a_cut_or_a_pause_left_its_handlers_without_an_end() -> None:
    hung = Case(executions=[ran(0, ALICE, 5, None)], wanted=())
    death = gone(ALICE, 26, 26.1)

    assert check(replace(hung, faults=[death])).unfinished, "nobody knows why"
    for fault in (Fault(Kind.CUT, "alice", 25, 30), paused(ALICE, 25, 30), paused(ALICE, 20, 25)):
        assert check(replace(hung, faults=[fault, death])).broken_off, fault
    others = (paused(ALICE, 10, 15), paused(ALICE, 27, 30), paused(BOB, 25, 30), outage(25, 30))
    for fault in others:
        assert check(replace(hung, faults=[fault, death])).unfinished, fault
    later = Case(executions=[ran(0, ALICE, 28, None)], wanted=())
    assert check(replace(later, faults=[paused(ALICE, 25, 30), death])).unfinished


def test_who_was_cut_off_ran_until_it_died_and_who_stood_still_did_not() -> None:
    pair = [ran(0, ALICE, 1, None), ran(0, BOB, 5, 6, key="b", fence=2)]
    death = gone(ALICE, 7, 7.1)

    cut = judge(pair, Fault(Kind.CUT, "alice", 2, 8), death)
    assert (cut.held, cut.stale) == (True, [tuple(pair)])
    still = judge(pair, paused(ALICE, 2, 8), death)
    assert (still.held, still.stale) == (True, [])
    same = [pair[0], replace(pair[1], fence=1)]
    assert judge(same, Fault(Kind.CUT, "alice", 2, 8), death).owner_overlaps == [tuple(same)]


def test_a_supervisor_that_stands_still_alone_stops_nobody_and_renews_for_nobody() -> None:
    lapse = Fault(Kind.LAPSE, "alice", 2, 8)
    slow = [ran(0, ALICE, 1, 9), ran(0, BOB, 5, 6, key="b", fence=2)]

    assert judge(slow, lapse).stale == [tuple(slow)]
    twice = [ran(0, BOB, 5, 6, fence=2), ran(0, ALICE, 1, 9)]
    assert judge(twice, lapse).repeated, "it could record its effect"
    hung = Case(executions=[ran(0, ALICE, 5, None)], wanted=(), faults=[lapse, gone(ALICE, 7, 7.1)])
    assert check(hung).unfinished


def test_who_was_stopped_right_before_its_handler_begins_it_on_waking_and_is_stale() -> None:
    others = [ran(0, BOB, 5, 6, key="b", fence=2), ran(1, BOB, 8.06, 9, key="b", fence=2)]
    woken = ran(0, ALICE, 8.05, 8.1)

    found = judge([*others, woken], paused(ALICE, 2, 8))
    assert found.held
    assert [(older.id, newer) for older, newer in found.stale] == [(woken.id, others[0])]
    for fault in (paused(ALICE, 2, 7), paused(BOB, 2, 8), Fault(Kind.CUT, "alice", 2, 8)):
        assert judge([*others, woken], fault).fallen_fences, fault


def test_no_more_than_one_handler_is_about_to_begin_when_its_process_is_stopped() -> None:
    other = ran(0, BOB, 5, 6, key="b", fence=2)
    woken = [ran(0, ALICE, 8.05, 8.1), ran(0, ALICE, 8.06, 8.1, key="c")]

    assert judge([other, *woken], paused(ALICE, 2, 8)).fallen_fences == [(other, woken[1])]
    other_two = ran(1, BOB, 17, 18, key="b", fence=4)
    again = ran(0, ALICE, 20.05, 20.1, key="d", fence=3)
    pauses = paused(ALICE, 2, 8), paused(ALICE, 14, 20)
    assert judge([other, woken[0], other_two, again], *pauses).held


def test_who_wakes_up_and_still_has_its_lease_begins_then() -> None:
    one, next_one = ran(0, ALICE, 1, 8.01), ran(1, ALICE, 8.02, 8.03)

    assert judge([one, next_one], paused(ALICE, 2, 8)).undisturbed


def test_what_ended_as_the_stop_was_sent_came_before_what_had_begun() -> None:
    one, woken = ran(0, ALICE, 1, 2.01), ran(1, ALICE, 8.05, 8.1)
    other = ran(0, BOB, 5, 6, key="b", fence=2)

    assert judge([one, other, woken], paused(ALICE, 2, 8)).held


def test_a_fence_may_fall_once_where_the_store_forgot_it_under_a_wrong_clock() -> None:
    before, after, later = (ran(n, ALICE, 5 * n + 1, 5 * n + 2, fence=f) for n, f in
                            enumerate((100, 50, 51)))  # fmt: skip
    forgot, behind = Fault(Kind.AMNESIA, "", 3, 4), Fault(Kind.CLOCK, "", 2, 5, what="behind")
    ahead = Fault(Kind.CLOCK, "", 0, 1.5, what="ahead")

    for clock in (behind, ahead):
        found = judge([before, after, later], forgot, clock)
        assert found.held
        assert found.forgotten_fences == [(before, after)]
    again = replace(later, fence=49)
    assert judge([before, after, again], forgot, behind).fallen_fences == [(after, again)]


def test_a_clock_or_an_emptied_store_alone_let_no_fence_fall() -> None:
    pair = [ran(0, ALICE, 1, 2, fence=100), ran(1, ALICE, 6, 7, fence=50)]
    forgot, behind = Fault(Kind.AMNESIA, "", 3, 4), Fault(Kind.CLOCK, "", 2, 5, what="behind")

    assert judge(pair, forgot).fallen_fences
    assert judge(pair, behind).fallen_fences
    assert judge(pair, forgot, replace(behind, since=1, until=2)).fallen_fences, (
        "it was right again"
    )
    assert judge(pair, replace(forgot, since=8, until=9), behind).fallen_fences, "emptied later"
