"""What is noted of a fault: from when to when, and that two of them do not undo each other."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from threading import Event, Thread
from time import monotonic
from types import SimpleNamespace
from typing import Any, cast

import pytest

from acceptance.running import Ledger
from chaos.executions import Fault
from chaos.faults.catalog import Setting
from chaos.faults.clock import Clock
from chaos.nemesis import TROUBLES
from chaos.stage import Stage
from machines.supervisor import Part, Supervisor
from servers import Guard
from waiting import until


@pytest.fixture
def noted() -> list[Fault]:
    return []


@pytest.fixture
def supervisor(tmp_path: Path, noted: list[Fault]) -> Iterator[Supervisor]:
    """A process that stands for a supervisor: it only waits."""
    with Guard() as guard:
        made = Supervisor(
            tmp_path / "alice",
            "alice",
            "app",
            broker="memory://",
            dedup="",
            ledger=Ledger(tmp_path / "ledger"),
            note=noted.append,
            guard=guard,
        )
        wait = "import time; time.sleep(60)"
        made._process = subprocess.Popen([sys.executable, "-c", wait], process_group=0)
        yield made
        made.kill_rest()


def test_a_kill_lasts_from_before_its_signal_until_after_it(
    supervisor: Supervisor, noted: list[Fault], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[float] = []
    kill = os.kill

    def send(pid: int, number: int) -> None:
        sent.append(monotonic())
        kill(pid, number)

    monkeypatch.setattr(os, "kill", send)
    supervisor.kill(Part.SUPERVISOR)

    (fault,) = noted
    assert fault.since <= sent[0] <= fault.until <= monotonic()
    assert fault.pids == frozenset({supervisor.pid})


def test_a_clock_that_jumps_does_not_jump_again_before_it_is_back(tmp_path: Path) -> None:
    """Two that each put it back to what they found would leave it where neither found it."""
    clock = Clock(tmp_path / "clock")
    goes_on = Event()
    stage = cast(
        "Stage",
        SimpleNamespace(
            supervisors={"alice": None},
            place=SimpleNamespace(clock=None),
            setting=lambda _name, random: Setting(random=random, clocks=[clock]),
            last=lambda _seconds: goes_on.wait(),
            note=lambda _fault: None,
        ),
    )
    jump: Any = TROUBLES["clock-ahead"]
    first = Thread(target=jump, args=(stage, Random(1)))
    first.start()
    until(lambda: clock.ahead > 0, message="it is ahead")
    ahead = clock.ahead

    second = Thread(target=jump, args=(stage, Random(2)))
    second.start()
    second.join(10)
    assert not second.is_alive(), "it leaves the clock alone"
    assert clock.ahead == ahead
    goes_on.set()
    first.join(10)
    assert clock.ahead == 0
