"""What kills met: who was at work, who was amidst a handler, and what went on meanwhile."""

from __future__ import annotations

from chaos.blows import Thrown
from chaos.executions import Execution, Fault, Kind
from chaos.toll import toll

ALICE, BOB = 11, 22


def ran(pid: int, begin: float, end: float | None) -> Execution:
    return Execution(
        handler="h",
        id=f"{pid} {begin}",
        key="a",
        sequence=0,
        attempt=1,
        shard=0,
        fence=1,
        supervisor="alice",
        pid=pid,
        begin=begin,
        effect=end,
        end=end,
    )


def killed(at: float, *pids: int, what: str = "") -> Fault:
    return Fault(Kind.KILL, "alice", at, at + 0.001, frozenset(pids), what)


def test_every_process_that_was_killed_counts() -> None:
    found = toll([], [killed(1.0, ALICE), killed(2.0, BOB, 33, 44)])
    assert (found.kills, found.at_work, found.in_handlers) == (4, 0, 0)


def test_a_kill_by_a_crash_point_counts_at_its_point() -> None:
    end_of_time = Fault(Kind.KILL, "alice", 1.0, pids=frozenset({ALICE}), what="kill -9, here")
    found = toll([], [end_of_time, killed(2.0, BOB, what="kill -9, here"), killed(3.0, BOB)])
    assert found.kills == 3
    assert found.crashes == {"kill -9, here": 2}


def test_what_is_no_kill_does_not_count() -> None:
    pause = Fault(Kind.PAUSE, "alice", 1.0, 2.0, frozenset({ALICE}))
    stop = Fault(Kind.STOP, "alice", 1.0, 1.6, frozenset({ALICE}))
    assert toll([], [pause, stop]).kills == 0


def test_who_began_something_just_now_was_at_work() -> None:
    executions = [ran(ALICE, 1.0, 1.1), ran(BOB, 2.0, 2.1)]
    assert toll(executions, [killed(1.4, ALICE)]).at_work == 1
    assert toll(executions, [killed(1.6, ALICE)]).at_work == 0, "too long ago"
    assert toll(executions, [killed(0.9, ALICE)]).at_work == 0, "not yet"
    assert toll(executions, [killed(1.4, ALICE, BOB)]).at_work == 1, "the other one is idle"


def test_who_had_begun_and_not_ended_was_in_the_midst_of_a_handler() -> None:
    executions = [ran(ALICE, 1.0, 2.0), ran(BOB, 1.0, None)]
    found = toll(executions, [killed(1.5, ALICE), killed(9.0, BOB)])
    assert found.in_handlers == 2
    assert toll(executions, [killed(2.5, ALICE)]).in_handlers == 0


def test_the_pace_is_of_the_time_between_the_first_fault_and_the_last() -> None:
    effects = [ran(ALICE, at, at + 0.1) for at in (0.5, 1.0, 2.0, 3.0, 9.0)]
    assert toll(effects, [killed(1.0, BOB), killed(3.0, BOB)]).pace == 1.0
    assert toll(effects, [killed(1.0, BOB)]).pace == 0.0
    assert toll(effects, []).pace == 0.0


def test_the_pace_is_not_of_the_time_in_which_processes_are_drained() -> None:
    effects = [ran(ALICE, at, at + 0.1) for at in (1.0, 2.0, 4.0, 5.0)]
    gone = Fault(Kind.GONE, "alice", 9.0, 9.1, frozenset({ALICE}))
    assert toll(effects, [killed(1.0, BOB), killed(3.0, BOB), gone]).pace == 1.0


def test_every_fault_that_met_somebody_counts_by_its_name() -> None:
    blows = [
        Thrown("reload", 1.0, 1.1, ("alice",)),
        Thrown("redis-hung", 2.0, 5.0, ("everybody",)),
        Thrown("reload", 3.0, 3.1, ("bob",)),
        Thrown("kill one child alone, at work", 4.0, 7.0),
    ]
    assert toll([], [], blows).faults == {"reload": 2, "redis-hung": 1}
