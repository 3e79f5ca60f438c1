"""A second SIGTERM is no kill: who stops at once records what is done, and has no excuse for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from chaos.checker import Case, check
from chaos.executions import Fault, Kind, faults
from chaos.nemesis import terminate_twice
from chaos.places import Place
from chaos.stage import Stage
from chaos.workloads import Ledger
from judged import ALICE, BOB, gone, judge, outage, ran
from servers import Guard


def stopped(since: float, until: float) -> Fault:
    """Return a second SIGTERM to the supervisor of ALICE, which had ended by then."""
    return Fault(Kind.STOP, "alice", since, until, frozenset({ALICE}))


def test_a_stop_at_once_takes_a_while() -> None:
    twice = [ran(0, ALICE, 1, 4), ran(0, BOB, 6, 7, fence=2)]
    assert judge(twice, stopped(2, 4.5)).held
    assert judge(twice, stopped(2, 3)).repeated


def test_who_stops_at_once_records_what_is_done() -> None:
    twice = [ran(0, ALICE, 1, 1.1), ran(0, BOB, 6, 7, fence=2)]

    assert judge(twice, stopped(2, 2.5)).repeated
    assert judge(twice, stopped(1.3, 2)).held, "it may not have returned"
    assert judge(twice, replace(stopped(1.3, 2), pids=frozenset({BOB}))).repeated
    assert judge(twice, stopped(2, 2.5), outage(0.5, 3)).held, "it could not be recorded"
    assert judge(twice, stopped(2, 2.5), outage(0.5, 1.3)).repeated, "it could, by then"


def test_what_waits_for_the_broker_is_recorded_a_while_after_its_end() -> None:
    twice = [ran(0, ALICE, 1, 1.2), ran(0, BOB, 6, 7, fence=2)]
    case = Case(executions=twice, wanted=(), faults=[stopped(2, 2.5)])

    assert check(case).repeated
    assert check(replace(case, parents={"h"})).explained
    assert check(replace(case, parents={"h"}, faults=[stopped(3, 3.5)])).repeated


def test_a_handler_of_who_stops_at_once_runs_on_until_its_process_is_gone() -> None:
    left, beside = ran(0, ALICE, 1, None), ran(0, BOB, 2.2, 3, key="b", fence=2)
    stop = stopped(2, 3)

    assert judge([left], stop).held
    assert judge([replace(left, begin=5)], stop).unfinished
    assert judge([left, beside], stop, gone(ALICE, 2.1, 2.3)).held
    assert judge([left, beside], stop, gone(ALICE, 2.4, 2.5)).owner_overlaps


class Patient:
    """A supervisor that drains for ever, until it is told to stop."""

    name, pid, last_pid, running = "alice", 7, None, True

    def children(self) -> list[int]:
        return [ALICE]

    def terminate(self) -> None:
        pass

    def signal(self, _number: int) -> None:
        self.running = False

    def exit_code(self) -> int:
        return 130


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    place, folder = Place(broker="memory://"), tmp_path / "stage"
    with Guard() as guard:
        made = Stage(folder, guard, Ledger(1), place, transactional=False, options=())
        with made:
            yield made


def test_a_second_sigterm_is_noted_as_what_it_is(stage: Stage) -> None:
    patient: Any = Patient()
    stage.supervisors["alice"] = patient
    stage.healing.set()  # it waits for nothing
    terminate_twice(stage, Random(1))

    (stop,) = faults(stage.history.entries())
    assert (stop.kind, stop.supervisor, stop.pids) == (Kind.STOP, "alice", frozenset({7, ALICE}))
