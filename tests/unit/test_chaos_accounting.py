"""Where the judge finds everything: done, dead or parked, and nothing both."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from chaos.checker import Case, check
from chaos.executions import Execution, Fault, Kind
from judged import ALICE, BOB, killed, outage, paused, ran

#: What these tests set aside for a reason.
ORDERED = [(handler, f"a#{n}") for handler in ("h", "g", "") for n in (0, 1)]


def aside(*executions: Execution) -> Case:
    """Return a case whose first message is a dead letter by order."""
    return Case(executions=executions, wanted=(), set_aside=[("h", "a#0")], hopeless=ORDERED)


def test_what_was_set_aside_is_accounted_for_and_leaves_a_gap_in_the_order() -> None:
    ran_around = [ran(0, ALICE, 1, 2), ran(2, ALICE, 3, 4)]
    wanted = {("h", f"a#{n}") for n in range(3)}
    published = {f"a#{n}": ("a", n) for n in range(3)}
    case = Case(executions=ran_around, wanted=wanted, published=published, hopeless=ORDERED)

    assert (check(case).lost, len(check(case).out_of_order)) == (["h a#1"], 1)
    assert check(replace(case, set_aside=[("h", "a#1")])).held
    assert check(replace(case, set_aside=[("", "a#1")])).held, "for every handler"
    assert check(replace(case, set_aside=[("g", "a#1")])).lost == ["h a#1"]


def test_what_is_done_and_set_aside_needs_a_fault_to_explain_it() -> None:
    case = aside(ran(0, ALICE, 1, 2))

    assert check(case).twofold
    assert check(replace(case, faults=[killed(BOB, 2.1)])).twofold
    assert check(replace(case, faults=[killed(ALICE, 2.1)])).held


def test_what_nobody_heard_of_may_be_missing_but_nothing_else() -> None:
    ran_around = [ran(0, ALICE, 1, 2), ran(2, ALICE, 3, 4)]
    case = Case(executions=ran_around, wanted=())

    assert check(replace(case, optional={("a", 1)})).held
    assert check(replace(case, optional={("b", 1)})).out_of_order


def failed(sequence: int, pid: int, begin: float, end: float | None, **facts: Any) -> Execution:
    """Return an execution that raised."""
    return replace(ran(sequence, pid, begin, end, **facts), effect=None)


def other(since: float, until: float) -> Fault:
    """Return trouble that keeps nobody from anything."""
    return Fault(Kind.OTHER, "", since, until, what="redis-scripts-flushed")


def broker(since: float, until: float) -> Fault:
    """Return trouble that keeps nobody from the store, but everybody from the broker."""
    return Fault(Kind.BROKER, "", since, until)


def test_a_fault_that_was_over_or_of_another_kind_explains_nothing_that_is_done_and_dead() -> None:
    case = aside(ran(0, ALICE, 19, 20))
    forgot = Fault(Kind.AMNESIA, "", 19.5, 21)
    faults = (other(1, 1), other(20, 30), outage(20, 30), killed(ALICE, 1), killed(ALICE, 22))

    for fault in (*faults, forgot, paused(ALICE, 2, 8)):
        assert check(replace(case, faults=[fault])).twofold, fault


def test_done_by_one_and_set_aside_by_the_next_is_explained_as_a_second_effect_is() -> None:
    runs = [ran(0, ALICE, 1, 2), failed(0, BOB, 9, 10, fence=2)]
    case = aside(*runs)
    forgot = Fault(Kind.AMNESIA, "", 3, 4)

    assert check(case).twofold
    for fault in (killed(ALICE, 2.1), paused(ALICE, 1.5, 8), forgot):
        assert check(replace(case, faults=[fault])).held, fault
    assert check(replace(case, faults=[replace(forgot, since=11, until=12)])).twofold


def test_who_died_or_was_away_after_setting_it_aside_explains_that_the_next_one_did_it() -> None:
    runs = [failed(0, ALICE, 1, 2), ran(0, BOB, 9, 10, fence=2)]
    case = aside(*runs)

    assert check(case).twofold
    assert check(replace(case, faults=[killed(ALICE, 2.1)])).held
    assert check(replace(case, faults=[killed(ALICE, 7)])).twofold
    assert check(replace(case, faults=[killed(BOB, 7)])).twofold


def test_what_reached_no_handler_and_is_done_is_both() -> None:
    case = replace(aside(ran(0, ALICE, 1, 2)), set_aside=[("", "a#0")])

    assert check(case).twofold
    assert check(replace(case, faults=[killed(ALICE, 2.1)])).held


def parked_at(sequence: int, upto: int, *executions: Execution, handlers: str = "h") -> Case:
    """Return a case of key a whose places from ``sequence`` on were parked."""
    places = range(upto + 1)
    culprit = {sequence: "h"}
    return Case(
        executions=executions,
        wanted={(h, f"a#{n}") for h in handlers for n in places},
        published={f"a#{n}": ("a", n) for n in places},
        parked=[(culprit.get(n, ""), f"a#{n}") for n in range(sequence, upto + 1)],
        hopeless={("h", f"a#{sequence}")},
        parking={"h"},
    )


def test_a_parked_key_with_its_successors_is_accounted_for() -> None:
    case = parked_at(1, 3, ran(0, ALICE, 1, 2), failed(1, ALICE, 3, 4))

    assert check(case).held
    assert check(replace(case, parked=case.parked[1:])).lost == ["h a#1"]


def test_nothing_runs_behind_what_is_parked_whatever_happens() -> None:
    runs = [ran(0, ALICE, 1, 2), failed(1, ALICE, 3, 4), ran(4, BOB, 9, 10, fence=2)]
    case = parked_at(1, 3, *runs)
    forgot = Fault(Kind.AMNESIA, "", 5, 6)

    for faults in ([], [killed(ALICE, 4.1)], [paused(ALICE, 3.5, 8)], [forgot], [other(4, 5)]):
        found = check(replace(case, faults=faults))
        assert found.past_parked == [(runs[-1], "a#1 is parked")], faults
        assert not found.held


def test_what_is_parked_and_done_later_is_behind_what_is_parked_too() -> None:
    case = parked_at(1, 3, ran(0, ALICE, 1, 2), failed(1, ALICE, 3, 4), ran(2, ALICE, 5, 6))

    assert len(check(case).past_parked) == 1


def test_the_other_handler_of_a_key_may_have_gone_on_before_that_was_parked() -> None:
    ahead = [replace(ran(n, ALICE, 4 + n, 4.5 + n), handler="g") for n in range(3)]
    case = parked_at(1, 3, ran(0, ALICE, 1, 2), failed(1, ALICE, 3, 4), *ahead, handlers="hg")

    assert check(case).held
    late = replace(ran(4, ALICE, 20, 21), handler="g")
    assert check(replace(case, executions=[*case.executions, late])).past_parked


def test_a_dead_letter_keeps_no_handler_from_its_successors() -> None:
    runs = [ran(0, ALICE, 1, 2), failed(1, ALICE, 3, 4), ran(2, ALICE, 5, 6)]
    case = parked_at(3, 3, *runs)
    case = replace(case, set_aside=[("h", "a#1")], hopeless={*case.hopeless, ("h", "a#1")})

    assert check(case).held


def test_the_parked_messages_of_a_key_are_in_order_the_first_time_that_each_is_there() -> None:
    case = parked_at(1, 4, ran(0, ALICE, 1, 2), failed(1, ALICE, 3, 4))
    one, two, three, four = case.parked

    assert check(replace(case, parked=[one, two, one, two, three, four])).held
    found = check(replace(case, parked=[one, three, two, four]))
    assert found.parked_in_no_order == ["a#2 behind #3: a#2"]
    assert not found.held


def test_who_died_behind_a_refusal_may_have_parked_in_no_order() -> None:
    case = parked_at(1, 2, ran(0, ALICE, 1, 2), failed(1, ALICE, 3, 4))
    case = replace(case, parked=case.parked[::-1])
    full = replace(outage(5, 6), what="disk-full")

    gone = Fault(Kind.GONE, "alice", 6.9, 7, frozenset({ALICE}))

    for death in (killed(ALICE, 7), gone):
        assert check(replace(case, faults=[full, death])).held
    for faults in ([full], [killed(ALICE, 7)], [full, killed(ALICE, 3)], [full, killed(ALICE, 60)]):
        assert check(replace(case, faults=faults)).parked_in_no_order, faults


def test_who_has_nothing_to_do_with_a_key_parks_nothing_of_it() -> None:
    runs = [ran(0, ALICE, 1, 2), failed(1, ALICE, 3, 4), ran(0, BOB, 1, 2, key="b", shard=1)]
    case = parked_at(1, 2, *runs)
    case = replace(case, parked=case.parked[::-1])
    full = replace(outage(5, 6), what="disk-full")

    assert check(replace(case, faults=[full, killed(BOB, 7)])).parked_in_no_order


def test_what_is_done_may_be_parked_as_a_copy_where_there_may_be_one() -> None:
    runs = [ran(0, ALICE, 1, 2), failed(1, ALICE, 3, 4)]
    case = parked_at(1, 2, *runs)
    case = replace(case, parked=[*case.parked, ("", "a#0")])

    assert check(case).twofold == [runs[0]]
    assert check(replace(case, published_again={"a#0"})).held
    for fault in (killed(ALICE, 3), broker(2, 3), replace(broker(2, 3), kind=Kind.HANG)):
        assert check(replace(case, faults=[fault])).held, fault
    for fault in (killed(BOB, 3), broker(0.5, 1.5), outage(2, 3), other(2, 3)):
        assert check(replace(case, faults=[fault])).twofold, fault


def test_what_was_sent_during_a_change_of_shards_may_come_twice() -> None:
    runs = [ran(0, ALICE, 1, 2), failed(1, ALICE, 3, 4)]
    case = parked_at(1, 2, *runs)
    case = replace(case, parked=[*case.parked, ("", "a#0")], sent={"a#0": 0.9})

    for changes, is_held in (([(0.5, 5.0)], True), ([(1.5, 5.0)], True), ([(2.5, 5.0)], False)):
        assert check(replace(case, changes=changes)).held is is_held, changes
    assert check(replace(case, changes=[(0.1, 0.5)])).twofold


def test_what_was_acknowledged_long_ago_comes_once() -> None:
    runs = [ran(0, ALICE, 1, 2), failed(1, ALICE, 3, 4)]
    case = parked_at(1, 2, *runs)
    case = replace(case, parked=[*case.parked, ("", "a#0")])

    for fault in (killed(ALICE, 9), broker(9, 10), paused(ALICE, 9, 20)):
        assert check(replace(case, faults=[fault])).twofold, fault
        held_up = [*runs, failed(0, ALICE, 0.5, 8, key="b")]
        behind = replace(case, executions=held_up, sent={"b#0": 0, "a#0": 0.1})
        assert not check(replace(behind, faults=[fault])).twofold, "behind what was sent before"
        after = replace(behind, sent={"a#0": 0.1, "b#0": 2})
        assert check(replace(after, faults=[fault])).twofold, fault
    kept = broker(3, 9), killed(ALICE, 10)
    assert check(replace(case, faults=kept)).held, "one trouble after the other"


def test_who_parked_a_key_and_did_what_parked_it_needs_an_excuse_of_its_own() -> None:
    runs = [ran(0, ALICE, 1, 2), failed(1, ALICE, 3, 4), ran(1, BOB, 9, 10, fence=2)]
    case = parked_at(1, 1, *runs)

    assert check(replace(case, faults=[broker(3, 20)])).twofold == [runs[-1]]
    assert check(replace(case, faults=[killed(ALICE, 4.1)])).held
