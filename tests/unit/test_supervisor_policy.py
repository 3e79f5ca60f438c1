"""What the supervisor decides, without processes or clocks."""

from __future__ import annotations

import pytest

from worker.supervisor.policy import (
    HEALTHY_AFTER,
    MAX_STARTUP_DEATHS,
    BurstWatch,
    Restarts,
    Standstills,
    drain_allowance,
    stood_still,
)


def test_a_process_that_was_healthy_is_replaced_at_once() -> None:
    assert Restarts().after_death(HEALTHY_AFTER + 1) == 0


def test_deaths_at_start_up_wait_longer_each_time_and_are_given_up() -> None:
    restarts = Restarts()

    waits = [restarts.after_death(None) for _ in range(MAX_STARTUP_DEATHS)]

    assert waits == [0.5, 1.0, 2.0, 4.0, None]


def test_being_ready_once_starts_the_count_of_deaths_at_start_up_anew() -> None:
    restarts = Restarts()
    for _ in range(MAX_STARTUP_DEATHS - 1):
        restarts.after_death(None)

    restarts.ready()

    assert restarts.after_death(None) == 0.5


def test_a_process_killed_every_second_is_never_given_up_and_waits_a_second_at_most() -> None:
    restarts = Restarts()

    waits = []
    for _ in range(1000):
        restarts.ready()
        waits.append(restarts.after_death(1.0))

    assert waits[0] == 0
    assert None not in waits
    assert max(wait for wait in waits if wait is not None) == 1.0


def test_an_outage_of_a_server_is_waited_out_for_as_long_as_it_takes() -> None:
    restarts = Restarts()

    waits = [restarts.after_outage() for _ in range(100)]

    assert waits[:4] == [0.5, 1.0, 2.0, 4.0]
    assert max(waits) == 5.0


QUIET = {"idle": True, "received": 7}


def test_a_burst_is_over_after_two_quiet_beats_of_everybody() -> None:
    burst = BurstWatch()

    for pid in (1, 2, 1):
        burst.beat(pid, QUIET)
    assert not burst.over([1, 2])
    burst.beat(2, QUIET)

    assert burst.over([1, 2])


def test_work_in_one_process_makes_everybody_wait_for_two_more_beats() -> None:
    burst = BurstWatch()
    for _ in range(2):
        burst.beat(1, QUIET)
        burst.beat(2, QUIET)

    burst.beat(1, {"idle": True, "received": 8})  # it had worked, perhaps for the other
    burst.beat(1, {"idle": True, "received": 8})
    burst.beat(1, {"idle": True, "received": 8})

    assert not burst.over([1, 2])


def test_a_process_that_never_reported_is_not_quiet() -> None:
    burst = BurstWatch()
    for _ in range(3):
        burst.beat(1, QUIET)

    assert not burst.over([1, 2])


def test_a_beat_that_is_not_idle_is_not_quiet() -> None:
    burst = BurstWatch()
    for _ in range(3):
        burst.beat(1, {"idle": False, "received": 7})

    assert not burst.over([1])


def test_of_a_process_that_died_nothing_is_remembered_and_everybody_is_asked_again() -> None:
    burst = BurstWatch()
    for _ in range(3):
        burst.beat(1, QUIET)
        burst.beat(2, QUIET)

    burst.bury(1)
    assert not burst.over([2]), "somebody has to do what it left"
    for _ in range(2):
        burst.beat(1, {"idle": True, "received": 9})  # another one of that number
        burst.beat(2, QUIET)

    assert burst.over([1, 2])


@pytest.mark.parametrize(("timeout", "allowance"), [(25.0, 24.0), (2.0, 1.8), (0.0, 0.0)])
def test_a_child_gets_a_little_less_than_the_drain_to_report_by_itself(
    timeout: float, allowance: float
) -> None:
    assert drain_allowance(timeout) == pytest.approx(allowance)


def test_a_wait_that_took_much_longer_than_it_should_was_a_pause_of_everything() -> None:
    assert not stood_still(1.2, 1.0)
    assert stood_still(61.0, 1.0)


def test_a_machine_that_stands_again_and_again_is_told_of_once_a_minute() -> None:
    standstills = Standstills()
    told = [standstills.note(3.0, now) for now in (100.0, 103.0, 157.0, 160.0, 170.0, 221.0)]

    stood = "nothing ran here for 3 s: the machine or this process stood"
    assert told == [
        stood, "", "", f"{stood} (and 2 times in the 60 s before, 6 s in all)",
        "", f"{stood} (and 1 times in the 61 s before, 3 s in all)",
    ]  # fmt: skip
    assert standstills.note(9.0, 500.0) == stood.replace("3", "9")
