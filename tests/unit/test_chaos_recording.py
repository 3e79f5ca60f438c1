"""A kill explains what there was no time to record, and not what the runtime forgot."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chaos.checker import Case, check
from chaos.executions import Execution, Fault, Kind
from chaos.findings import Findings
from judged import ALICE, BOB, judge, killed, outage, ran


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
