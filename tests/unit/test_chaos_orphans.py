"""What a process leaves undone that has lost its supervisor, and what it should not have begun."""

from __future__ import annotations

from dataclasses import replace

from chaos.checker import Case, check
from chaos.executions import Fault, Kind
from judged import ALICE, BOB, gone, judge, ran

#: Its death, six seconds after the beginning. Leases live for three, so who lost it drains for 2.4.
SUPERVISOR = Fault(Kind.KILL, "alice", 6, pids=frozenset({7}))


def test_who_loses_its_supervisor_ends_and_leaves_a_handler_that_takes_longer() -> None:
    left = replace(ran(0, ALICE, 5, None), life=7)
    death = gone(ALICE, 8.4, 8.5)

    assert judge([left], SUPERVISOR, death).held
    assert judge([left], death).unfinished
    assert judge([left], SUPERVISOR).unfinished, "it may live on"
    assert judge([left], replace(SUPERVISOR, pids=frozenset({8})), death).unfinished, "another"
    assert judge([left], SUPERVISOR, gone(ALICE, 10.5, 10.6)).unfinished, "it drains for 2.4 s"
    for lease_ttl, held in ((9, True), (3, False)):
        case = Case(executions=[left], wanted=(), faults=[SUPERVISOR, gone(ALICE, 12, 12.1)])
        assert check(replace(case, lease_ttl=lease_ttl)).held is held, "a share of its leases"
    late = replace(left, begin=8)
    assert judge([late], SUPERVISOR, death).unfinished, "it should not have begun it"
    beside = ran(0, BOB, 8.3, 9, key="b", fence=2)
    assert judge([left, beside], SUPERVISOR, death).owner_overlaps, "it ran until then"


def test_who_loses_its_supervisor_records_nothing_that_it_has_given_up() -> None:
    death = gone(ALICE, 8.5, 8.6)
    late = [replace(ran(0, ALICE, 5, 8.5), life=7), ran(0, BOB, 30, 31, fence=2)]
    in_time = [replace(ran(0, ALICE, 5, 7.8), life=7), late[1]]

    assert judge(late, SUPERVISOR, death).explained == [tuple(late)]
    assert judge(late, death).repeated
    assert judge(late, SUPERVISOR).repeated, "it lived on"
    assert judge(late, SUPERVISOR, gone(ALICE, 11, 11.1)).repeated, "it had time"
    assert judge(in_time, SUPERVISOR, death).repeated, "it drains for 2.4 s"


def test_what_such_a_one_does_is_recorded_once_the_handler_has_returned() -> None:
    death = gone(ALICE, 8.5, 8.6)
    again = ran(0, BOB, 30, 31, fence=2)
    first = replace(ran(0, ALICE, 5, 8.45), effect=8.39, life=7)

    assert judge([first, again], SUPERVISOR, death).explained
    slow = replace(first, effect=7)
    assert judge([slow, again], SUPERVISOR, death).explained, "it ended after the drain"
    assert judge([replace(slow, end=None), again], SUPERVISOR, death).explained, "or never"
    assert judge([replace(slow, end=7.1), again], SUPERVISOR, death).repeated


def test_who_has_lost_its_supervisor_begins_nothing_more() -> None:
    again = ran(0, BOB, 30, 31, fence=2)
    for begin, held in ((6.5, True), (7.5, False)):
        late = replace(ran(0, ALICE, begin, 8.5), life=7)
        assert judge([late, again], SUPERVISOR, gone(ALICE, 8.5, 8.6)).held is held, begin
    drains_not = replace(ran(0, ALICE, 10, 10.1), life=7)
    assert judge([drains_not, again], SUPERVISOR, gone(ALICE, 10.2, 10.3)).repeated


def test_who_waits_for_a_server_knows_later_that_its_supervisor_is_dead() -> None:
    again = ran(0, BOB, 30, 31, fence=2)
    late = [replace(ran(0, ALICE, 8, 10.5), life=7), again]
    death = gone(ALICE, 10.6, 10.7)

    for kind in (Kind.OUTAGE, Kind.CUT, Kind.HANG, Kind.PAUSE):
        waits = Fault(kind, "alice", 5.5, 8)
        assert judge(late, SUPERVISOR, death, waits).held, kind
        assert judge(late, SUPERVISOR, death, replace(waits, supervisor="bob")).repeated, kind
        assert judge(late, SUPERVISOR, death, replace(waits, since=1, until=3)).repeated, kind
    assert judge(late, SUPERVISOR, death, Fault(Kind.OTHER, "alice", 5.5, 8)).repeated
