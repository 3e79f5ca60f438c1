"""A kill explains what there was no time to record, and not what the runtime forgot."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chaos.checker import Case, check
from chaos.executions import Execution, Fault, Kind
from chaos.findings import Findings
from judged import ALICE, BOB, judge, killed, outage, paused, ran


def once(n: int, at: float) -> Execution:
    """Return an execution of a key of its own that ends ``at``."""
    return ran(0, ALICE, at - 0.01, at, key=f"key-{n}")


def again(execution: Execution) -> Execution:
    """Return what the next owner did once more."""
    at = 100 + execution.begin
    return replace(execution, pid=BOB, fence=2, begin=at, effect=at + 0.01, end=at + 0.01)


def test_the_age_of_what_a_kill_explains_is_told() -> None:
    old, new = once(0, 9.5), once(1, 9.98)
    found = judge([old, new, again(old), again(new)], killed(ALICE, 10))

    assert found.held
    assert found.ages == pytest.approx([0.02, 0.5])
    assert "seconds from such an effect to the kill: 0.500, up to 0.500" in found.summary


def test_an_outage_ages_nothing() -> None:
    old = once(0, 5)
    found = judge([old, again(old)], outage(4.9, 9.9), killed(ALICE, 10))

    assert found.held
    assert found.ages == pytest.approx([0.1])


def test_what_ended_well_before_something_that_was_recorded_was_forgotten() -> None:
    old, new = once(0, 9.2), once(1, 9.9)
    found = judge([old, new, again(old)], killed(ALICE, 10))

    assert found.forgotten == [(old, again(old))]
    assert not found.held


def test_nothing_was_forgotten_where_nothing_later_was_recorded_either() -> None:
    old, new = once(0, 9.2), once(1, 9.9)
    kill = killed(ALICE, 10)

    assert judge([old, new, again(old), again(new)], kill).held
    assert judge([old, once(1, 9.6), again(old)], kill).held, "both may end in one tick"
    for other in (replace(new, handler="g"), replace(new, pid=BOB, supervisor="bob", shard=1)):
        assert judge([old, other, again(old)], kill).forgotten == []
    returned_not = replace(old, end=None)
    assert judge([returned_not, new, again(old)], kill).forgotten == []


def test_who_was_cut_off_as_well_forgot_nothing() -> None:
    old, new = once(0, 9.2), once(1, 9.9)

    assert judge([old, new, again(old)], killed(ALICE, 10), Fault(Kind.CUT, "alice", 9.3, 10)).held


def test_the_record_of_what_published_waits_for_its_children() -> None:
    old, new = once(0, 9.2), once(1, 9.9)
    case = Case(executions=[old, new, again(old)], wanted=(), faults=[killed(ALICE, 10)])

    assert check(case).forgotten
    assert check(replace(case, parents={"h"})).held


def noted(*times: float) -> dict[tuple[str, str], list[float]]:
    return {("h", "key-0#0"): [*times]}


def test_what_was_recorded_has_no_second_effect_whoever_is_killed() -> None:
    old = once(0, 9.98)
    kill = killed(ALICE, 10)
    case = Case(executions=[old, again(old)], wanted=(), faults=[kill], recorded=noted(9.99))

    found = check(case)
    assert found.repeated == [(old, again(old))]
    assert found.heedless == [again(old)]
    assert check(replace(case, recorded={})).held
    cut = Fault(Kind.CUT, "alice", 9.9, 60)
    assert check(replace(case, faults=[kill, cut, outage(9.9, 60)])).repeated
    assert check(replace(case, recorded=noted(9.99, 109.99))).repeated, "and the second one too"


def test_what_a_store_recorded_and_forgot_may_have_one() -> None:
    old = once(0, 9.98)
    forgot = Fault(Kind.AMNESIA, "", 20, 21)
    case = Case(executions=[old, again(old)], wanted=(), faults=[forgot], recorded=noted(9.99))

    assert check(case).heedless == []
    assert check(replace(case, recorded=noted(9.99, 30))).heedless, "recorded once more since"
    assert check(replace(case, faults=[replace(forgot, since=8, until=9)])).heedless


def test_who_began_before_it_was_recorded_could_not_know() -> None:
    sleeper, other = ran(0, ALICE, 1, 9), ran(0, BOB, 5, 6, fence=2)
    case = Case(executions=[sleeper, other], wanted=(), faults=[paused(ALICE, 2, 8)])
    at = {("h", "a#0"): [6.01]}

    assert check(replace(case, recorded=at)).held
    assert check(replace(case, recorded={("h", "a#0"): [4.9]})).repeated


def test_in_a_transaction_too_nothing_is_begun_that_is_recorded() -> None:
    old = once(0, 9.98)
    run_again = replace(again(old), effect=None)
    case = Case(executions=[old, run_again], wanted=(), transactional=True, recorded=noted(9.99))

    assert check(case).heedless == [run_again]
    assert check(replace(case, recorded={})).held


def at_once(number: int, concurrency: int, *faults: Fault) -> Findings:
    """Judge so many second effects of one kill."""
    first = [once(n, 9.95 + n / 10_000) for n in range(number)]
    apart = [replace(e, key=f"key-{n}") for n, e in enumerate(first)]
    runs = [*apart, *(again(e) for e in apart)]
    return check(Case(executions=runs, wanted=(), faults=faults, concurrency=concurrency))


def test_no_more_is_explained_by_a_kill_than_a_process_can_have_under_way() -> None:
    kill = killed(ALICE, 10)

    # 30 of them in a quarter of a second: it may have claimed three more than it runs.
    assert at_once(30, 12, kill).held
    found = at_once(30, 11, kill)
    assert found.too_many == [
        "pid 11, killed at 10.000: 30 effects were not recorded, and 28 at most can be under way"
    ]
    assert not found.held
    assert at_once(30, 0, kill).held, "it is not known how many run at once"
