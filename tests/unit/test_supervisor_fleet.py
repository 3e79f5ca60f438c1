"""What the fleet does where not even a process can be started."""

from __future__ import annotations

from worker.supervisor.fleet import Fleet
from worker.supervisor.policy import MAX_STARTUP_DEATHS


def test_a_process_that_cannot_be_started_is_tried_again_and_then_given_up() -> None:
    fleet = Fleet({}, ["/nowhere/python"])
    now = 100.0
    waits = []

    while fleet.failure is None:
        fleet.manage(now)
        waits.append(fleet.next_deadline() - now)
        now = fleet.next_deadline()

    assert waits[:-1] == [0.5, 1.0, 2.0, 4.0]
    assert len(waits) == MAX_STARTUP_DEATHS
    assert fleet.failure.exit_code == 5
    assert fleet.children() == []
